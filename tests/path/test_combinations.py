"""Parts of the path family that meet: layers and copies, adjoints and fast fields, narrowing and dense output."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.ode.explicit.tableau import weights


@pytest.mark.parametrize("kind", ["layer", "flow"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_layer_can_be_copied_after_a_call_with_penalties(kind, how):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    options = {"autonomous": True, "penalties": (ti.nn.KineticEnergy(),)}
    module = ti.nn.NeuralODE(net, **options) if kind == "layer" else ti.nn.CNF(net, 2, **options)
    x = torch.randn(3, 2, dtype=torch.float64)
    value = module(x)
    copied = how(module)
    assert torch.equal(copied.penalties[0], module.penalties[0])
    assert module.penalties[0].requires_grad
    assert not copied.penalties[0].requires_grad
    assert torch.equal(copied(x), value)


def test_a_speed_whose_square_overflows_still_gets_a_first_step():
    span, rate = 1e-30, 1e30  # in single precision the norm of the first slope over the tolerance is infinite
    k = torch.tensor(1.0, requires_grad=True)
    times = torch.tensor([0.0, span])
    solver = ti.Tsit5(rtol=1e-4, atol=1e-6, max_steps=100)
    solution = ti.odeint(lambda t, y, k: -k * (rate * y), torch.ones(2, 3), times, k, solver=solver)
    torch.testing.assert_close(solution.value[-1], torch.full((2, 3), 0.36788), rtol=1e-3, atol=0.0)
    solution.value[-1, 0, 0].backward()
    assert k.grad is not None
    assert abs(float(k.grad) + 0.36788) < 1e-3


def lagging(t, y, rate):
    return torch.sin(t) - rate * y


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.Dopri8(rtol=1e-6)])
@pytest.mark.parametrize("fires", [False, True])
def test_dense_output_and_events_do_not_depend_on_narrowing_or_the_way_time_runs(solver, fires):
    batch = 8200  # above the size from which solves go on with fewer samples
    torch.manual_seed(0)
    start = torch.randn(batch, 2, dtype=torch.float64)
    last = torch.linspace(0.2, 2.0, batch, dtype=torch.float64)
    last = torch.where(torch.arange(batch) % 2 == 0, last, -0.5 * last)
    times = torch.stack((0 * last, last))
    looked_at = torch.stack((0 * last, 0.01 * last, 0.77 * last, last))
    event = ti.Event(lambda t, y, rate: y[:, 0] - 0.35) if fires else None
    found = []
    for batched in (None, (0,)):
        rate = torch.linspace(0.1, 2.0, batch, dtype=torch.float64).unsqueeze(1).requires_grad_()
        solution = ti.odeint(lagging, start, times, rate, solver=solver, batched_args=batched, dense=True, event=event)
        assert solution.path is not None
        path = solution.path(looked_at)
        (grad,) = torch.autograd.grad(path.square().sum() + solution.value.sum(), rate)
        found.append((solution.value, path, solution.path.derivative(looked_at), grad, solution.path.reached))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def swing(t, y, w):
    return torch.stack((y[:, 1], -(w**2) * y[:, 0]), 1)


SPLIT = ti.Split(lambda t, y, w: 0 * y, swing)
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.mark.parametrize(
    ("solver", "field", "atol"),
    [
        (ti.Kvaerno3(rtol=1e-7, atol=1e-9), swing, 1e-6),
        (ti.ESDIRK54(**TIGHT), swing, 1e-6),
        (ti.KenCarp4(**TIGHT), SPLIT, 1e-6),
        (ti.Dopri8(**TIGHT), swing, 1e-5),
        (ti.Leapfrog(dt=0.01), swing, 2e-3),
        (ti.Suzuki4(dt=0.05), swing, 1e-5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_events_and_dense_output_under_stiff_and_symplectic_solvers(solver, field, atol):
    """A quarter of a period, pi / (2 w), with two derivatives; and the path on the way, cos(w t)."""
    w = double(2.0)[0].requires_grad_()
    event = ti.Event(lambda t, y, w: y[:, 0])
    start, ts = double([1.0, 0.0], [3.0, 0.0]), double(0.0, 3.0)
    solution = ti.odeint(field, start, ts, w, solver=solver, event=event, dense=True)
    found = solution.event_time[1]
    (first,) = torch.autograd.grad(found, w, create_graph=True)
    (second,) = torch.autograd.grad(first, w, retain_graph=True)
    exact = [math.pi / 4, -math.pi / 8, math.pi / 8]
    assert [found.item(), first.item(), second.item()] == pytest.approx(exact, abs=atol)
    assert solution.path is not None
    on_the_way = solution.path(0.5)[0, 0]
    (slope,) = torch.autograd.grad(on_the_way, w)
    assert [on_the_way.item(), slope.item()] == pytest.approx([math.cos(1), -math.sin(1) / 2], abs=atol)


@pytest.mark.parametrize("on_net", [False, True])
def test_autocast_with_events_and_dense_output(on_net):
    """The field sees half precision, the solve and the gradients do not."""
    torch.manual_seed(0)
    net, start, ts = (
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)),
        torch.randn(6, 2),
        torch.tensor([0.0, 2.0]),
    )
    seen, found = [], []

    def field(t, y, net):
        slope = net(y) - y
        seen.append(net[0](y).dtype)
        return slope

    def condition(t, y, net):
        return net(y)[:, 0] if on_net else y[:, 0] - 0.1

    for enabled, rtol in ((False, 1e-5), (True, 1e-2)):
        seen.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            solution = ti.odeint(
                field, start, ts, net, solver=ti.Tsit5(rtol=rtol, atol=rtol), event=ti.Event(condition), dense=True
            )
        assert set(seen) == {torch.bfloat16 if enabled else torch.float32}
        assert solution.path is not None
        path = solution.path(0.7)  # outside of autocast: made again as it was made
        assert set(seen) == {torch.bfloat16 if enabled else torch.float32}
        time = solution.event_time.nan_to_num()
        grad = torch.autograd.grad(time.sum() + path.sum(), net[0].weight)[0]
        assert {each.dtype for each in (solution.value, path, time, grad)} == {torch.float32}
        found.append((solution.value, path, time, grad))
        assert solution.fired.any()
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0.15, atol=0.05)


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.ESDIRK54(rtol=1e-4), ti.Leapfrog(dt=0.1)], ids=str)
def test_inference_mode_with_events_and_dense_output(solver):
    start, ts, w = double([1.0, 0.0], [3.0, 0.0]), double(0.0, 3.0), double(2.0)[0]

    def run():
        return ti.odeint(swing, start, ts, w, solver=solver, event=ti.Event(lambda t, y, w: y[:, 0]), dense=True)

    plain = run()
    with torch.inference_mode():
        other = run()
        inside = other.path(0.3), other.path.derivative(0.3)
    for found in (inside, (other.path(0.3), other.path.derivative(0.3))):
        assert torch.allclose(found[0], plain.path(0.3), atol=1e-8)
        assert torch.allclose(found[1], plain.path.derivative(0.3), atol=1e-6)
    assert torch.allclose(other.event_time, plain.event_time, atol=1e-12)


def test_coefficients_that_a_transform_asks_for_first_serve_afterwards():
    """They are kept: they must not belong to the transform."""
    start, ts, w = double([1.0, 0.0]), double(0.0, 0.3, 1.0), double(2.0)[0]

    def loss(w):
        return ti.odeint(swing, start, ts, w, solver=ti.Dopri8(rtol=1e-6)).value.sum()

    for _ in range(2):
        weights.cache_clear()
        second = torch.func.jacfwd(torch.func.grad(loss))(w)
        leaf = w.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        assert torch.allclose(torch.autograd.grad(first, leaf)[0], second, rtol=1e-10)
        assert torch.allclose(torch.vmap(torch.func.jacfwd(torch.func.grad(loss)))(w.expand(2)), second, rtol=1e-10)


def test_vmap_of_a_gradient_along_a_path_backward_in_time():
    start, w = double([1.0, 0.0], [0.5, 0.3]), double(2.0, 1.5)
    tolerance = double(1e-8, 1e-9)  # a tensor, too, that is made within the transforms

    def loss(w, end):
        solver = ti.Tsit5(rtol=1.0 * tolerance, atol=1e-9)
        return ti.odeint(swing, start, torch.stack((1 + 0 * end, end)), w, solver=solver).value[-1].square().sum()

    end = double(-0.5)[0]
    several = torch.vmap(torch.func.grad(lambda w: loss(w, end)))(w)
    for i in range(2):
        leaf = w[i].clone().requires_grad_()
        assert torch.allclose(several[i], torch.autograd.grad(loss(leaf, end), leaf)[0], rtol=1e-6)

"""Dense output: a path at any time, its derivative, and their gradients."""

import pytest
import torch

import torchimplicit as ti

TIGHT = ti.Tsit5(rtol=1e-10, atol=1e-12)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def swirl(t, y, w):
    return torch.stack((torch.cos(t[:, 0]) * y[:, 1], -w * y[:, 0] * y[:, 1]), 1)


START, TIMES, RATE = double([1.0, 0.5], [-0.3, 2.0]), double(0.0, 0.4, 2.0), double(0.7)[0]
SOLVERS = [ti.Tsit5(), ti.Dopri5(), ti.Bosh3(), ti.RK4(dt=0.1), ti.Midpoint(dt=0.1)]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_it_is_the_outputs_at_the_outputs(solver):
    ts = torch.linspace(0, 2, 23, dtype=torch.float64)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            all_of_them = ti.odeint(swirl, START, ts, RATE, solver=solver)
            few = ti.odeint(swirl, START, TIMES, RATE, solver=solver, dense=True)
            assert torch.allclose(few.path(ts), all_of_them.value, atol=1e-13)
            assert torch.allclose(few.path(ts.flip(0)).flip(0), few.path(ts), atol=1e-15)
            assert torch.allclose(few.path(0.4), few.value[1], atol=1e-14)


def test_shapes_and_forms_of_times():
    path = ti.odeint(swirl, START, TIMES, RATE, dense=True).path
    assert path is not None
    assert path(1).shape == path(double(1.0)[0]).shape == (2, 2)
    assert path(double(1.0)).shape == (1, 2, 2)
    own = path(double([0.2, 1.9], [1.3, 0.0], [2.0, 2.0]))
    assert own.shape == (3, 2, 2)
    assert torch.allclose(own[0, 1], path(1.9)[1], atol=1e-15)
    assert torch.equal(own[1, 1], START[1])
    assert torch.equal(path(torch.tensor([0, 1, 2])), path(double(0, 1, 2)))
    assert torch.allclose(path.reached, double(2.0, 2.0))


@pytest.mark.parametrize("times", [[0.0, 0.7, 3.0], [3.0, 1.0, 0.0]])
def test_derivative_is_near_to_the_field(times):
    ts = double(*times)
    start = torch.exp(-ts[:1]).unsqueeze(1)
    path = ti.odeint(lambda t, y: -y, start, ts, solver=TIGHT, dense=True).path
    t = torch.linspace(0, 3, 31, dtype=torch.float64)
    assert torch.allclose(path(t).flatten(), torch.exp(-t), atol=1e-8)
    assert torch.allclose(path.derivative(t).flatten(), -torch.exp(-t), atol=1e-6)
    step = 1e-5
    slope = (path(t[1:-1] + step) - path(t[1:-1] - step)) / (2 * step)
    assert torch.allclose(path.derivative(t[1:-1]), slope, atol=1e-6)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()], ids=str)
@pytest.mark.parametrize("solver", [ti.RK4(dt=0.9), ti.Midpoint(dt=0.9)], ids=str)
def test_gradients_of_a_path_are_exact_for_the_steps_taken(solver, adjoint):
    t = double(0.1, 0.37, 2.0, 0.0, 1.1)

    def run(y0, ts, w, t):
        solution = ti.odeint(swirl, y0, ts, w, solver=solver, adjoint=adjoint, dense=True)
        return solution.value, solution.path(t), solution.path.derivative(t[:2])

    inputs = [each.clone().requires_grad_() for each in (START, TIMES, RATE, t[:2])]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-8, rtol=1e-7)
    if isinstance(solver, ti.Midpoint):
        assert torch.autograd.gradgradcheck(run, inputs)
    at_ends = [START.clone().requires_grad_(), RATE.clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda y0, w: run(y0, TIMES, w, t)[1], at_ends, atol=1e-8)


def test_the_gradient_by_the_time_is_the_derivative_also_where_a_step_ends():
    ts = double(0.0, 0.5, 1.0)
    path = ti.odeint(swirl, START, ts, RATE, solver=ti.RK4(), dense=True).path
    t = double(0.0, 0.25, 0.5, 1.0).requires_grad_()
    (slope,) = torch.autograd.grad(path(t).sum(), t)
    assert torch.allclose(slope, path.derivative(t).sum((1, 2)), atol=1e-12)


def test_transforms():
    t = double(0.3, 1.7)

    def run(w):
        return ti.odeint(swirl, START, TIMES, w, dense=True).path(t)

    forward, reverse = torch.func.jacfwd(run)(RATE), torch.func.jacrev(run)(RATE)
    assert torch.allclose(forward, reverse, atol=1e-12)
    step = double(1e-5)[0]
    loop = (ti.odeint(swirl, START, TIMES, RATE + step, solver=TIGHT, dense=True).path(t)
            - ti.odeint(swirl, START, TIMES, RATE - step, solver=TIGHT, dense=True).path(t)) / (2 * step)  # fmt: skip
    assert torch.allclose(forward, loop, atol=1e-4)
    with pytest.raises(RuntimeError, match="expected a batch in dimension 0"):
        torch.vmap(run)(torch.stack((RATE, RATE)))


def test_a_path_costs_the_steps_that_are_looked_at():
    seen = []

    def field(t, y):
        seen.append(float(t[0]))
        return -y

    ts, start = double(0.0, 10.0), torch.ones(1, 1, dtype=torch.float64)
    with torch.no_grad():
        path = ti.odeint(field, start, ts, solver=ti.RK4(dt=0.1), dense=True).path
        seen.clear()
        path(torch.linspace(5.01, 5.09, 1000, dtype=torch.float64))
        assert len(seen) == 5  # four stages and the slope at the end, once, however many times
        assert min(seen) >= 5 - 1e-9
        assert max(seen) <= 5.1 + 1e-9
        seen.clear()
        path(torch.linspace(0, 10, 1000, dtype=torch.float64))
        assert len(seen) == 500


def test_nested_complex_and_joint():
    start = {"z": torch.ones(2, 3, dtype=torch.complex128), "s": torch.ones(2, 1, 2, dtype=torch.float64)}
    w = double(2.0)[0].requires_grad_()

    def field(t, y, w):
        return {"z": 1j * w * y["z"], "s": -y["s"]}

    for stepping in ("per-sample", "joint"):
        path = ti.odeint(field, start, double(0.0, 1.0), w, solver=TIGHT, stepping=stepping, dense=True).path
        found = path(double(0.25, 0.75))
        assert found["z"].shape == (2, 2, 3)
        assert found["s"].shape == (2, 2, 1, 2)
        assert torch.allclose(found["z"][1], torch.exp(1.5j * torch.ones(2, 3).double()), atol=1e-8)
        assert torch.allclose(path.derivative(0.5)["s"], -torch.exp(-double(0.5)) * torch.ones(2, 1, 2), atol=1e-6)
        (slope,) = torch.autograd.grad(found["z"].real.sum(), w)
        expected = -6 * (0.25 * torch.sin(double(0.5)) + 0.75 * torch.sin(double(1.5))) / 1
        assert slope.item() == pytest.approx(expected.item(), rel=1e-7)


def test_a_sample_that_stopped_holds_its_state():
    start = double([1.0], [0.1])
    solution = ti.odeint(lambda t, y: y**2, start, double(0.0, 2.0), dense=True, on_failure="ignore")
    path = solution.path
    assert solution.status.tolist()[1] == 0
    assert path.reached[0].item() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(path(1.5)[0], solution.value[-1, 0])
    assert path.derivative(1.5)[0].item() == 0
    assert path(1.5)[1].item() == pytest.approx(1 / (10 - 1.5), rel=1e-4)
    fallen = ti.odeint(
        lambda t, y: -torch.ones_like(y), start, double(0.0, 2.0), dense=True, event=ti.ode.Event(lambda t, y: y[:, 0])
    )
    assert torch.allclose(fallen.path.reached, double(1.0, 0.1))
    assert torch.allclose(fallen.path(double(0.05, 0.5, 2.0)).squeeze(2), double([0.95, 0.05], [0.5, 0], [0, 0]))
    assert torch.allclose(fallen.path.derivative(double(0.05, 0.5)).squeeze(2), double([-1, -1], [-1, 0]))


@pytest.mark.parametrize(
    ("t", "text"),
    [
        (2.1, r"t = 2.1 for sample 0, expected a time within \[0, 2\]"),
        (-0.1, r"t = -0.1 for sample 0, expected a time within \[0, 2\]"),
        (float("nan"), r"t = nan"),
        (torch.zeros(2, 3), r"shape \(2, 3\), expected a number, \(M,\) or \(M, 2\)"),
        (torch.zeros(0), r"shape \(0,\)"),
    ],
)
def test_times_outside(t, text):
    path = ti.odeint(swirl, START, TIMES, RATE, dense=True).path
    with pytest.raises(ValueError, match=text):
        path(t)


def test_times_outside_when_time_runs_backward():
    path = ti.odeint(swirl, START, -TIMES, RATE, dense=True).path
    assert path(-2.0).shape == (2, 2)
    with pytest.raises(ValueError, match=r"t = 1 for sample 0, expected a time within \[-2, 0\]"):
        path(1.0)


def test_no_path_unless_asked_for():
    assert ti.odeint(swirl, START, TIMES, RATE).path is None

"""The contract of odeint: what holds for every explicit solver, adjoint and kind of state."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

import torchimplicit as ti
from tests.ode.cases import double, problem, swirl

ADAPTIVE = [ti.Tsit5, ti.Dopri5, ti.Bosh3, ti.Heun]
FIXED = [ti.Euler, ti.Midpoint, ti.RK4]
ADJOINTS = [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()]


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_linear_field_gives_an_exponential(method):
    rate, start = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    ts = torch.linspace(0, 1.5, 7, dtype=torch.float64)
    rtol = 1e-4 if method is ti.Heun else 1e-7
    solution = ti.odeint(lambda t, y, rate: rate * y, start, ts, rate, solver=method(rtol=rtol, atol=rtol))
    exact = torch.exp(rate * ts.reshape(-1, 1, 1))
    assert solution.value.shape == (7, 3, 1)
    assert torch.allclose(solution.value, exact, rtol=50 * rtol)
    assert torch.equal(solution.value[0], start)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_gradients_of_the_steps_taken_are_exact(method, adjoint):
    y0, ts, W = problem(batch=2, times=4)
    solver = method(dt=0.23) if method in FIXED else method(rtol=1e-2, atol=1e-2)
    if method in ADAPTIVE:  # finite differences must not change the steps: one size for all
        solver = method(control=ti.Fixed(0.31))
    inputs = [each.requires_grad_() for each in (y0, ts, W)]

    def run(y0, ts, W):
        return ti.odeint(swirl, y0, ts, W, solver=solver, adjoint=adjoint).value

    assert torch.autograd.gradcheck(run, inputs, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_second_derivatives(adjoint):
    y0, ts, W = problem(batch=2, times=3)

    def run(y0, ts, W):
        return ti.odeint(swirl, y0, ts, W, solver=ti.RK4(), adjoint=adjoint).value

    inputs = [each.requires_grad_() for each in (y0, ts, W)]
    assert torch.autograd.gradgradcheck(run, inputs)


def test_transforms_agree_with_each_other_and_with_a_loop():
    y0, ts, W = problem()

    def run(W):
        return ti.odeint(swirl, y0, ts, W, solver=ti.Tsit5(rtol=1e-8, atol=1e-10)).value

    def loss(W):
        return run(W).square().sum()

    forward, reverse = torch.func.jacfwd(run)(W), torch.func.jacrev(run)(W)
    assert torch.allclose(forward, reverse, atol=1e-11)
    many = torch.stack([W, -W, 2 * W])
    values, slopes = torch.vmap(run)(many), torch.vmap(torch.func.grad(loss))(many)
    for each, value, slope in zip(many, values, slopes, strict=True):
        assert torch.allclose(value, run(each), atol=1e-12)
        assert torch.allclose(slope, torch.func.grad(loss)(each), atol=1e-11)


def test_hessian_is_symmetric_and_right():
    y0, ts, W = problem(batch=1, times=2)

    def loss(W):
        return ti.odeint(swirl, y0, ts, W, solver=ti.RK4(dt=0.5)).value[-1].square().sum()

    hessian = torch.func.hessian(loss)(W).reshape(9, 9)
    assert torch.allclose(hessian, hessian.T, atol=1e-10)
    step = 1e-5 * double(3, 3, seed=5)
    change = torch.func.grad(loss)(W + step) - torch.func.grad(loss)(W - step)
    assert torch.allclose(change.flatten() / 2, hessian @ step.flatten(), atol=1e-12, rtol=1e-5)


def stiffness(t, y, mu):
    x, v = y[:, :1], y[:, 1:]
    return torch.cat((v, mu * (1 - x**2) * v - x), 1)


@pytest.mark.parametrize("batched_args", [None, (0,)])
def test_a_sample_does_not_see_its_mates(batched_args):
    mu = torch.linspace(0.1, 8, 9000, dtype=torch.float64).reshape(-1, 1)[:: 1 if batched_args else 1000]
    start = torch.ones(len(mu), 2, dtype=torch.float64)
    ts = torch.linspace(0, 3, 5, dtype=torch.float64)
    together = ti.odeint(stiffness, start, ts, mu, batched_args=batched_args)
    for i in (0, len(mu) // 2, len(mu) - 1):
        alone = ti.odeint(stiffness, start[[i]], ts, mu[[i]])
        assert torch.allclose(together.value[:, i], alone.value[:, 0], rtol=1e-9)
        assert together.steps[i] == alone.steps[0]
    assert together.steps.min() < together.steps.max()
    if batched_args:
        everybody = ti.odeint(stiffness, start, ts, mu)
        assert together.nfev >= everybody.nfev
        assert torch.allclose(together.value, everybody.value, rtol=1e-9)


def test_narrowing_changes_no_gradient():
    mu = torch.linspace(0.1, 8, 9000, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    start = torch.ones(len(mu), 2, dtype=torch.float64, requires_grad=True)
    ts = torch.linspace(0, 2, 3, dtype=torch.float64, requires_grad=True)

    def field(t, y, mu, scale):
        return stiffness(t, y * scale, mu)

    found = []
    for batched_args in (None, (0,)):
        value = ti.odeint(field, start, ts, mu, scale, batched_args=batched_args).value
        found.append(torch.autograd.grad(value.square().sum(), (start, ts, mu, scale)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_narrowing_goes_backward_in_time_too():
    rate = torch.linspace(-0.1, 8, 9000, dtype=torch.float64).reshape(-1, 1)
    start, ts = torch.ones(len(rate), 2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    end = ti.odeint(lambda t, y, rate: -rate * y * torch.cos(t), start, ts, rate, batched_args=(0,)).value[-1]
    assert torch.allclose(end, torch.exp(rate * torch.sin(ts[0])).expand(-1, 2), rtol=1e-3)


def test_narrowing_keeps_every_samples_own_tolerance():
    mu = torch.linspace(0.1, 8, 9000, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    start, ts = torch.ones(len(mu), 2, dtype=torch.float64), torch.linspace(0, 2, 3, dtype=torch.float64)
    rtol = torch.where(mu.detach() < 4, 1e-3, 1e-6)
    narrowed = ti.odeint(stiffness, start, ts, mu, solver=ti.Tsit5(rtol=rtol), batched_args=(0,))
    whole = ti.odeint(stiffness, start, ts, mu, solver=ti.Tsit5(rtol=rtol))
    assert torch.equal(narrowed.report.accepted, whole.report.accepted)
    slopes = [torch.autograd.grad(each.value.sum(), mu)[0] for each in (narrowed, whole)]
    assert torch.allclose(*slopes, rtol=1e-8, atol=1e-10)


def test_a_non_finite_sample_leaves_the_others_alone():
    start, mu = torch.ones(5, 2, dtype=torch.float64), torch.full((5, 1), 2.0, dtype=torch.float64)
    benign = ti.odeint(stiffness, start, torch.tensor([0.0, 2.0]).double(), mu)
    mu[2] = torch.nan
    invalid = ti.odeint(stiffness, start, torch.tensor([0.0, 2.0]).double(), mu, on_failure="ignore")
    others = [0, 1, 3, 4]
    assert invalid.status.tolist() == [0, 0, int(ti.Status.NON_FINITE), 0, 0]
    assert torch.equal(invalid.value[:, others], benign.value[:, others])
    assert torch.equal(invalid.steps[others], benign.steps[others])
    assert torch.equal(invalid.value[-1, 2], start[2])


@pytest.mark.parametrize("stepping", ["per-sample", "joint"])
def test_shapes_and_nests(stepping):
    start = {"a": torch.ones(2, 3, 4), "b": torch.ones(2, 5, dtype=torch.complex64)}
    ts = torch.tensor([0.0, 0.5, 1.0])
    solution = ti.odeint(lambda t, s: {"a": -s["a"] + 0 * t, "b": 2j * s["b"]}, start, ts, stepping=stepping)
    assert solution.value["a"].shape == (3, 2, 3, 4)
    assert solution.value["b"].dtype == torch.complex64
    assert torch.allclose(solution.value["a"][2], torch.full((2, 3, 4), 0.36788), atol=1e-4)
    assert torch.allclose(solution.value["b"][1], torch.exp(1j * torch.ones(2, 5)), atol=1e-3)


def test_times_of_every_samples_own_and_backward_in_time():
    start = torch.ones(3, 1, dtype=torch.float64)
    ts = torch.tensor([[0.0, 0.0, 2.0], [1.0, -0.5, 1.0], [1.5, -3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    seen = []

    def field(t, y):
        if seen is not None:
            seen.append(t.detach().flatten())
        return t * y

    solution = ti.odeint(field, start, ts, solver=ti.Tsit5(rtol=1e-9, atol=1e-9))
    asked, seen = torch.stack(seen), None
    exact = torch.exp((ts**2 - ts[0] ** 2) / 2)
    assert torch.allclose(solution.value.squeeze(2), exact, rtol=1e-7)
    assert torch.equal(solution.report.reached, ts[-1])
    low, high = ts.detach().amin(0), ts.detach().amax(0)
    assert bool(((asked >= low) & (asked <= high)).all())  # never outside of what was asked for
    (slope,) = torch.autograd.grad(solution.value.sum(), ts)
    (expected,) = torch.autograd.grad(exact.sum(), ts)
    assert torch.allclose(slope, expected, rtol=1e-5, atol=1e-6)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, t, y):
        return self.net(y) - t * y


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_parameters_of_a_module_get_their_gradients(adjoint):
    field, (y0, ts, _) = Field(), problem()
    value = ti.odeint(field, y0, ts, solver=ti.RK4(dt=0.1), adjoint=adjoint).value
    found = torch.autograd.grad(value.square().sum(), list(field.parameters()))
    y, rows, t, expected = y0, [y0], 0.0, None
    for i in range(20):
        h, t = 0.1, torch.full((4, 1), 0.1 * i, dtype=torch.float64)
        k1 = field(t, y)
        k2 = field(t + h / 2, y + h / 2 * k1)
        k3 = field(t + h / 2, y + h / 2 * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(t + h, y + h * k3))
        if (i + 1) % 4 == 0:
            rows.append(y)
    expected = torch.autograd.grad(torch.stack(rows).square().sum(), list(field.parameters()))
    assert torch.allclose(torch.stack(rows), value, atol=1e-12)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-11)


def test_captured_tensors_are_refused():
    W = double(3, 3).requires_grad_()
    with pytest.raises(ti.CaptureError, match=r"\(3, 3\)"):
        ti.odeint(lambda t, y: y @ W, double(2, 3), torch.tensor([0.0, 1.0]))


def test_backward_twice_with_a_retained_graph():
    y0, ts, W = problem()
    W.requires_grad_()
    loss = ti.odeint(swirl, y0, ts, W, adjoint=ti.Checkpointed(3)).value.square().sum()
    first = torch.autograd.grad(loss, W, retain_graph=True)
    again = torch.autograd.grad(loss, W)
    assert torch.equal(first[0], again[0])


def test_fewer_checkpoints_change_no_bit_of_the_gradient():
    y0, _, W = problem()
    ts = torch.tensor([0.0, 5.0], dtype=torch.float64)
    W.requires_grad_()
    found = []
    for checkpoints in (2, 3, 7, 64, 1000):
        value = ti.odeint(swirl, y0, ts, W, solver=ti.RK4(dt=0.03), adjoint=ti.Checkpointed(checkpoints)).value
        found.append(torch.autograd.grad(value.sum(), W)[0])
    assert all(torch.equal(each, found[0]) for each in found)


def test_fixed_steps_end_where_they_shall():
    ts = torch.tensor([0.0, 0.35, 1.0], dtype=torch.float64)
    start = torch.ones(1, 1, dtype=torch.float64)
    seen = []
    solution = ti.odeint(lambda t, y: seen.append(float(t)) or -y, start, ts, solver=ti.Euler(dt=0.1))
    assert solution.report.accepted.tolist() == [10]
    assert max(seen) <= 1.0
    assert solution.value[-1].item() == pytest.approx(0.9**10)
    assert solution.value[1].item() == pytest.approx(0.9**3 * 0.95)
    uneven = ti.odeint(lambda t, y: -y, start, ts, solver=ti.Euler())
    assert uneven.value.flatten().tolist() == pytest.approx([1.0, 0.65, 0.65 * 0.35])


def test_options_change_the_run():
    y0, ts, W = problem()
    plain = ti.odeint(swirl, y0, ts, W)
    for options in (
        {"rtol": 1e-9}, {"atol": 1e-11, "rtol": 1e-12}, {"dt0": 1e-3}, {"control": ti.PID(safety=0.5)},
        {"control": ti.PID(proportional=0.4, integral=0.3)}, {"control": ti.PID(derivative=0.2)},
        {"rtol": torch.tensor(1e-9, dtype=torch.float64)},
    ):  # fmt: skip
        other = ti.odeint(swirl, y0, ts, W, solver=ti.Tsit5(**options))
        assert other.report.converged
        assert not torch.equal(other.steps, plain.steps) or not torch.equal(other.value, plain.value)
    joint = ti.odeint(swirl, y0, ts, W, stepping="joint")
    assert joint.status.shape == (1,)
    assert torch.allclose(joint.value, plain.value, atol=1e-4)


def test_a_limit_of_steps_is_a_status_with_the_path_so_far():
    start = torch.ones(2, 1, dtype=torch.float64)
    ts = torch.linspace(0, 10, 11, dtype=torch.float64)
    with pytest.raises(ti.ConvergenceError, match=r"max_steps.*\n?.*reached t = ") as caught:
        ti.odeint(lambda t, y: -100 * (y - torch.cos(t)), start, ts, solver=ti.Tsit5(max_steps=60))
    solution = caught.value.solution
    assert solution is not None
    reached = float(solution.report.reached[0])
    assert 1 < reached < 10
    whole = ti.odeint(lambda t, y: -100 * (y - torch.cos(t)), start, ts)
    done = ts <= reached
    assert torch.equal(solution.value[done], whole.value[done])
    with pytest.warns(ti.ConvergenceWarning, match="did not reach the last time"):
        ti.odeint(lambda t, y: -100 * y, start, ts, solver=ti.Tsit5(max_steps=6), on_failure="warn")


def test_solvers_travel():
    for solver in (ti.Tsit5(rtol=1e-3), ti.RK4(dt=0.1), ti.Checkpointed(7), ti.PID()):
        assert pickle.loads(pickle.dumps(solver)) == solver == deepcopy(solver)
    assert repr(ti.RK4(dt=0.1)) == "RK4(max_steps=10000, dt=0.1)"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ti.Tsit5(rtol=0), "rtol=0"),
        (lambda: ti.Tsit5(max_steps=0), "max_steps=0"),
        (lambda: ti.RK4(dt=-1), "dt=-1"),
        (lambda: ti.Checkpointed(1), "checkpoints=1"),
        (lambda: ti.PID(integral=0), "integral=0"),
        (lambda: ti.Tsit5(control=3), "control=3"),
    ],
)
def test_impossible_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_mixed_precision_keeps_its_types():
    field = Field().float()
    y0 = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = ti.odeint(field, y0, torch.tensor([0.0, 1.0]), solver=ti.RK4(dt=0.25))
        solution.value.sum().backward()
    assert solution.value.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in field.parameters())

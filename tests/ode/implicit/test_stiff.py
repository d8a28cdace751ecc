"""Stiff solvers: the classic problems, gradients of every kind, samples that fail alone, and fields in two parts."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import torchimplicit as ti
from torchimplicit.core.status import Status

EXACTLY = {"control": ti.Fixed(0.31), "rtol": 1e-5, "atol": 1e-5, "stage_tol": 1e-9, "newton_steps": 60}


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def robertson(t, y, k):
    a, b, c = y.unbind(1)
    slow, back, fast = k[..., 0] * a, k[..., 1] * b * c, k[..., 2] * b * b
    return torch.stack((back - slow, slow - back - fast, fast), 1)


def van_der_pol(t, y, mu):
    return torch.stack((y[:, 1], mu * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)


RATES = times(0.04, 1e4, 3e7)


def by_scipy(f, start, ts, arg):
    def slope(t, y):
        return f(t, torch.as_tensor(y).unsqueeze(0), arg)[0].numpy()

    found = solve_ivp(slope, (float(ts[0]), float(ts[-1])), start, "Radau", ts.numpy(), rtol=1e-10, atol=1e-13)
    return torch.as_tensor(found.y.T)


@pytest.mark.parametrize(("method", "rtol"), [(ti.Kvaerno3, 1e-6), (ti.ESDIRK54, 1e-8)])
def test_robertson_to_a_millionth(method, rtol):
    start, ts = times(1.0, 0.0, 0.0), times(0.0, 0.4, 4.0, 40.0, 400.0, 4e3, 4e4)
    solution = ti.odeint(robertson, start.unsqueeze(0), ts, RATES, solver=method(rtol=rtol, atol=1e-4 * rtol))
    assert float((solution.value[:, 0] - by_scipy(robertson, start.numpy(), ts, RATES)).abs().max()) < 1e-6
    assert int(solution.report.accepted.max()) < 700


def test_van_der_pol_to_a_millionth():
    start, ts, mu = times(2.0, 0.0), times(0.0, 400.0, 1200.0), times(1000.0)
    with torch.inference_mode():  # the Jacobian is there all the same
        found = ti.odeint(van_der_pol, start.unsqueeze(0), ts, mu, solver=ti.ESDIRK54(rtol=1e-8, atol=1e-8))
    assert float((found.value[:, 0] - by_scipy(van_der_pol, start.numpy(), ts, mu)).abs().max()) < 1e-6


def test_gradients_of_robertson_agree_with_differences():
    start, ts = times(1.0, 0.0, 0.0).unsqueeze(0), times(0.0, 40.0, 4e3)

    def run(k):
        return ti.odeint(robertson, start, ts, k, solver=ti.ESDIRK54(rtol=1e-8, atol=1e-12)).value[:, 0, 0].sum()

    k = RATES.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(k), k)
    with torch.no_grad():
        for i in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[i] = 1e-2 * RATES[i]
            difference = (run(RATES + step) - run(RATES - step)) / (2 * step[i])
            assert math.isclose(float(grad[i]), float(difference), rel_tol=1e-3)


def sensitivities_by_scipy(start, ts, mu):
    """Of the first unknown of van der Pol's field by `mu` and both starts, `(T, 3)`: its variational equations."""

    def slope(t, state):
        (a, b), moved = state[:2], state[2:].reshape(2, 3)
        jac = torch.tensor([[0.0, 1.0], [-2 * mu * a * b - 1, mu * (1 - a * a)]], dtype=torch.float64).numpy() @ moved
        jac[1, 0] += (1 - a * a) * b
        return [b, mu * (1 - a * a) * b - a, *jac.ravel()]

    state = [*start, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    found = solve_ivp(slope, (float(ts[0]), float(ts[-1])), state, "Radau", ts.numpy(), rtol=1e-10, atol=1e-13)
    return torch.as_tensor(found.y[2:5].T)


def test_gradients_of_van_der_pol_across_a_jump():
    """On the way to it they are as exact as the path. Within it they are two million times as large as behind it."""
    start, ts, mu = times(1.01, -0.05), times(0.0, 0.05, 6.0), times(1000.0)[0]
    leaves = [mu.clone().requires_grad_(), start.unsqueeze(0).clone().requires_grad_()]
    solver = ti.ESDIRK54(rtol=1e-8, atol=1e-10, derivatives=1)
    value = ti.odeint(van_der_pol, leaves[1], ts, leaves[0], solver=solver).value[:, 0, 0]
    assert value[1] > 0.9
    assert value[2] < -1.9  # it has jumped
    exact = sensitivities_by_scipy(start.numpy(), ts, float(mu))
    for place, rtol in ((1, 1e-6), (2, 2e-2)):
        by_mu, by_start = torch.autograd.grad(value[place], leaves, retain_graph=True)
        assert torch.allclose(torch.cat((by_mu.view(1), by_start[0])), exact[place], rtol=rtol)


def swirl(t, y, W):
    return torch.tanh(y @ W) * torch.cos(t) - 2 * y


def parts():
    return ti.Split(lambda t, y, W: torch.tanh(y @ W) * torch.cos(t), lambda t, y, W: -2 * y - y**3)


def problem():
    generator = torch.Generator().manual_seed(0)
    y0, W = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2, 3), (3, 3)))
    return y0, times(0.0, 0.5, 0.9), W


STEPPED = [(ti.Kvaerno3, swirl), (ti.ESDIRK54, swirl), (ti.KenCarp4, parts())]


@pytest.mark.parametrize(("method", "f"), STEPPED)
@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
def test_gradients_are_those_of_the_steps_taken(method, f, adjoint):
    def run(y0, ts, W):
        return ti.odeint(f, y0, ts, W, solver=method(**EXACTLY), adjoint=adjoint).value

    assert torch.autograd.gradcheck(run, [each.requires_grad_() for each in problem()], atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize(("method", "f"), [STEPPED[0], STEPPED[2]])
def test_second_derivatives(method, f):
    y0, ts, W = problem()

    def run(y0, W):
        return ti.odeint(f, y0, ts[:2], W, solver=method(**EXACTLY)).value

    assert torch.autograd.gradgradcheck(run, [y0[:1].requires_grad_(), W.requires_grad_()], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("method", "f"), STEPPED)
def test_transforms_agree(method, f):
    y0, ts, W = problem()

    def loss(W):
        return ti.odeint(f, y0, ts, W, solver=method(**EXACTLY)).value.square().sum()

    reverse, leaf = torch.func.grad(loss)(W), W.clone().requires_grad_()
    (plain,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.allclose(reverse, plain, atol=1e-12)
    assert torch.allclose(torch.func.jacfwd(loss)(W), plain, atol=1e-12)
    several = torch.vmap(torch.func.grad(loss))(torch.stack((W, -W)))
    assert torch.allclose(several[0], plain, atol=1e-12)


def test_one_order_of_derivatives_is_enough_for_gradients():
    y0, ts, W = problem()
    grads = []
    for derivatives in (1, 2):
        leaf = W.clone().requires_grad_()
        solver = ti.ESDIRK54(rtol=1e-6, derivatives=derivatives)
        ti.odeint(swirl, y0, ts, leaf, solver=solver).value.square().sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(*grads, rtol=1e-9)


def test_float32_serves():
    start, ts = torch.tensor([[2.0, 0.0]]), torch.tensor([0.0, 400.0])
    mu = torch.tensor(1000.0)
    found = ti.odeint(van_der_pol, start, ts, mu, solver=ti.ESDIRK54(rtol=1e-4, atol=1e-5)).value[-1, 0, 0]
    best = ti.odeint(van_der_pol, start.double(), ts.double(), mu.double(), solver=ti.ESDIRK54(rtol=1e-8, atol=1e-8))
    assert abs(float(found) - float(best.value[-1, 0, 0])) < 1e-3


def lonely(t, y, mu):
    return torch.stack((y[:, 1], mu * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)


@pytest.mark.parametrize("method", [ti.Tsit5, ti.ESDIRK54])
@pytest.mark.parametrize(("invalid", "status"), [(1e5, Status.MAX_STEPS), (math.nan, Status.NON_FINITE)])
def test_one_invalid_sample_of_many_changes_no_other(method, invalid, status):
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(1024, 2, dtype=torch.float64, generator=generator)
    mu = torch.rand(1024, dtype=torch.float64, generator=generator)
    ill = mu.clone()
    ill[17] = invalid
    solver, ts = method(rtol=1e-4, atol=1e-6, max_steps=60), times(0.0, 0.7, 2.0)
    with torch.no_grad():
        well = ti.odeint(lonely, y0, ts, mu, solver=solver)
        other = ti.odeint(lonely, y0, ts, ill, solver=solver, on_failure="ignore")
    rest = torch.arange(1024) != 17
    assert torch.equal(well.value[:, rest], other.value[:, rest])
    for name in ("status", "accepted", "rejected"):
        assert torch.equal(getattr(well.report, name)[rest], getattr(other.report, name)[rest])
    stiff_is_easy = method is ti.ESDIRK54 and status is Status.MAX_STEPS
    assert int(other.report.status[17]) == int(Status.CONVERGED if stiff_is_easy else status)
    assert bool((other.report.status[rest] == int(Status.CONVERGED)).all())


def test_a_stiff_field_under_an_explicit_solver_names_the_stiff_one():
    start, mu = times(2.0, 0.0).unsqueeze(0), times(1000.0)
    with pytest.raises(ti.ConvergenceError, match="ESDIRK54"):
        ti.odeint(van_der_pol, start, times(0.0, 400.0), mu, solver=ti.Tsit5(max_steps=300))


def test_blow_up_ends_in_a_status_of_its_sample():
    y0 = times(1.0, 0.1).unsqueeze(1)
    solution = ti.odeint(lambda t, y: y**2, y0, times(0.0, 2.0), solver=ti.ESDIRK54(), on_failure="ignore")
    assert int(solution.report.status[0]) != int(Status.CONVERGED)
    assert 0.99 < float(solution.report.reached[0]) < 1.01
    assert int(solution.report.status[1]) == int(Status.CONVERGED)
    assert abs(float(solution.value[-1, 1, 0]) - 0.1 / 0.8) < 1e-5


class Reaction(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(times(3.0))

    def source(self, t, y):
        return torch.sin(t) * torch.ones_like(y)

    def forward(self, t, y):
        return -self.rate * 100 * (y - 1)


def test_parameters_of_both_parts_get_gradients():
    implicit, other = Reaction(), Reaction()
    linear = nn.Linear(1, 1, dtype=torch.float64)
    for explicit in (lambda t, y: y, linear_field(linear), other.source):
        split = ti.Split(explicit, implicit)
        solution = ti.odeint(split, times(1.5, 0.5).unsqueeze(1), times(0.0, 1.0), solver=ti.KenCarp4(rtol=1e-6))
        implicit.zero_grad()
        solution.value.sum().backward()
        assert implicit.rate.grad is not None
        assert float(implicit.rate.grad.abs()) > 0
    assert linear.weight.grad is not None


def linear_field(linear):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, t, y):
            return self.linear(y)

    return Field()


def test_every_solver_takes_the_sum_of_a_split():
    y0, ts, W = problem()
    split = parts()
    imex = ti.odeint(split, y0, ts, W, solver=ti.KenCarp4(rtol=1e-9, atol=1e-9)).value
    for solver in (ti.Tsit5(rtol=1e-9, atol=1e-9), ti.ESDIRK54(rtol=1e-9, atol=1e-9)):
        assert torch.allclose(ti.odeint(split, y0, ts, W, solver=solver).value, imex, atol=1e-7)


def test_backward_in_time_and_nested_states():
    def field(t, state):
        return {"a": -50 * (state["a"] - torch.cos(t)), "b": -state["b"]}

    start = {"a": torch.ones(2, 1, dtype=torch.float64), "b": torch.ones(2, 1, 2, dtype=torch.float64)}
    solver = ti.ESDIRK54(rtol=1e-10, atol=1e-10)
    there = ti.odeint(field, start, times(0.0, 0.1), solver=solver).value
    back = ti.odeint(field, {name: each[-1] for name, each in there.items()}, times(0.1, 0.0), solver=solver).value
    assert torch.allclose(back["a"][-1], start["a"], atol=1e-6)
    assert torch.allclose(back["b"][-1], start["b"], atol=1e-8)


def test_what_cannot_work_is_refused():
    y0, ts = torch.ones(1, 2), torch.tensor([0.0, 1.0])
    with pytest.raises(TypeError, match=r"KenCarp4: got a field in one part, expected ti\.Split"):
        ti.odeint(lambda t, y: -y, y0, ts, solver=ti.KenCarp4())
    with pytest.raises(TypeError, match=r"Split\(implicit\): got a float"):
        ti.Split(lambda t, y: y, 1.0)
    with pytest.raises(ValueError, match="Split: got parts of shapes"):
        ti.odeint(ti.Split(lambda t, y: -y, lambda t, y: -y[:, :1]), y0, ts, solver=ti.KenCarp4())
    for option in ({"stage_tol": 0.0}, {"newton_steps": 1}, {"derivatives": 0}):
        with pytest.raises(ValueError, match="expected"):
            ti.ESDIRK54(**option)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
def test_a_blow_up_under_a_stiff_solver_stays_out_of_the_others_gradients(adjoint):
    start = torch.tensor([[0.1, 0.2], [0.5, 2.0], [0.3, 0.3]], dtype=torch.float64)
    ts = torch.tensor([0.0, 0.2, 0.4, 0.8], dtype=torch.float64)
    found = []
    for rows in ([0, 1, 2], [0, 2]):
        w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        options = {"solver": ti.ESDIRK54(), "adjoint": adjoint, "on_failure": "ignore"}
        value = ti.odeint(lambda t, y, w: w * y**2, start[rows], ts, w, **options).value
        assert bool(value.isfinite().all())
        found.append(torch.autograd.grad(value[:, [0, -1]].sum(), w)[0])
    assert torch.allclose(*found, rtol=1e-6)


@pytest.mark.parametrize("tol", [1e-4, 1e-7])
def test_stages_solved_further_gain_nothing_on_kaps_problem(tol):
    """Its stiffness, 1e8, is where stages that are not solved far enough would show; y = (exp(-2 t), exp(-t))."""
    stiffness = 1e8

    def kaps(t, y):
        a, b = y.unbind(1)
        return torch.stack((-(stiffness + 2) * a + stiffness * b * b, a - b - b * b), 1)

    ts, start = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    exact = torch.exp(-torch.tensor([2.0, 1.0], dtype=torch.float64))
    errors = []
    for stage_tol in (1e-3, 1e-6):
        solver = ti.ESDIRK54(rtol=tol, atol=tol, stage_tol=stage_tol)
        errors.append((ti.odeint(kaps, start, ts, solver=solver).value[-1, 0] - exact).abs())
    assert bool((errors[0] < 0.1 * tol).all())
    assert torch.allclose(*errors, rtol=0.05)

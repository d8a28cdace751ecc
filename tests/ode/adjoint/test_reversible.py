"""The reversible adjoint: its derivatives, its order, what steps it takes and when it says that it is wrong."""

from typing import Any

import pytest
import torch

import torchimplicit as ti
from tests.ode.cases import problem, swirl
from torchimplicit.ode import Reversible


def van_der_pol(t, y, mu):
    x, v = y[:, :1], y[:, 1:]
    return torch.cat((v, mu * (1 - x**2) * v - x), 1)


def chase(t, y, rate):
    return rate * (torch.cos(t) - y)


def test_a_sample_does_not_wait_for_the_others():
    ts, together = torch.tensor([0.0, 10.0], dtype=torch.float64), torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    found = []
    for rate in (together, together[:1]):
        rate = rate.clone().requires_grad_()
        start = torch.ones_like(rate).detach()
        solution = ti.odeint(chase, start, ts, rate, adjoint=Reversible(), on_failure="ignore")
        found.append(torch.autograd.grad(solution.value.sum(), rate)[0][0])
        assert solution.backward is not None
        assert float(solution.backward.drift[0]) < 1e-3  # type: ignore[attr-defined]
    assert torch.allclose(*found, rtol=1e-12)


def test_reversible_has_every_derivative():
    y0, ts, W = problem(batch=2, times=3)

    def run(y0, ts, W):
        return ti.odeint(swirl, y0, ts, W, solver=ti.RK4(), adjoint=Reversible()).value

    assert torch.autograd.gradgradcheck(run, [each.requires_grad_() for each in (y0, ts, W)])
    detached = [each.detach() for each in (y0, ts)]
    forward, reverse = (
        jac(lambda W: run(detached[0], detached[1], W))(W.detach()) for jac in (torch.func.jacfwd, torch.func.jacrev)
    )
    assert torch.allclose(forward, reverse, atol=1e-12)


@pytest.mark.parametrize(("method", "order"), [(ti.Euler, 1), (ti.Midpoint, 2), (ti.RK4, 4)])
def test_reversible_keeps_the_order(method, order):
    start, ts = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    errors = []
    for dt in (0.1, 0.05):
        value = ti.odeint(lambda t, y: torch.cos(t) * y, start, ts, solver=method(dt=dt), adjoint=Reversible()).value
        errors.append(float((value[-1] - torch.exp(torch.sin(ts[-1]))).abs()))
    assert errors[0] / errors[1] > 0.8 * 2**order


def test_reversible_takes_the_same_steps_without_a_gradient():
    y0, ts, W = problem()
    adjoint = Reversible(coupling=0.9)
    with torch.no_grad():
        plain = ti.odeint(swirl, y0, ts, W, adjoint=adjoint).value
    recorded = ti.odeint(swirl, y0, ts, W.requires_grad_(), adjoint=adjoint).value
    assert torch.equal(plain, recorded)
    assert not torch.equal(plain, ti.odeint(swirl, y0, ts, W, adjoint=Reversible()).value)
    solution = ti.odeint(swirl, y0, ts, W, adjoint=Reversible())
    solution.value.sum().backward()
    assert solution.backward is not None
    assert 0 < float(solution.backward.drift.max()) < 0.1  # type: ignore[attr-defined]


def test_reversible_says_that_its_states_have_parted():
    start, ts = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.0, 10.0], dtype=torch.float64)
    rate = torch.tensor([[0.1], [8.0]], dtype=torch.float64, requires_grad=True)

    def run(on_failure: Any, coupling=0.999):
        adjoint = Reversible(coupling)
        return ti.odeint(chase, start, ts, rate, adjoint=adjoint, on_failure=on_failure)

    with pytest.raises(ti.ConvergenceError, match="have parted"):
        run("raise")
    with torch.no_grad():
        assert run("ignore").status.tolist() == [0, int(ti.Status.DRIFTED)]
    solution = run("ignore")
    assert solution.status.tolist() == [0, int(ti.Status.DRIFTED)]
    tighter = run("ignore", 0.5).value.detach()
    assert float((tighter - solution.value.detach())[:, 1].abs().max()) > 1  # it had left
    (found,) = torch.autograd.grad(solution.value.sum(), rate)
    assert bool(found.isfinite().all())
    assert solution.backward is not None
    assert solution.backward.status.tolist() == [0, int(ti.Status.DRIFTED)]


def test_reversible_with_samples_that_arrive_early():
    mu = torch.linspace(0.1, 4, 9000, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    start = torch.ones(len(mu), 2, dtype=torch.float64, requires_grad=True)
    ts, found = torch.linspace(0, 0.5, 3, dtype=torch.float64), []
    for batched_args in (None, (0,)):
        value = ti.odeint(van_der_pol, start, ts, mu, batched_args=batched_args, adjoint=Reversible()).value
        found.append(torch.autograd.grad(value.square().sum(), (start, mu)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", [ti.Kvaerno3(), ti.Dopri8()])
def test_reversible_refuses_what_it_cannot_couple(solver):
    y0, ts, W = problem()
    with pytest.raises(ValueError, match=r"expected a method.*such as Tsit5.*Checkpointed\(\)"):
        ti.odeint(swirl, y0, ts, W, solver=solver, adjoint=Reversible())

"""A sample's path is the same to the bit however many samples there are: all families of methods, pointwise fields."""

from typing import Any

import pytest
import torch

import torchimplicit as ti
from torchimplicit import ode, sde

SIZES = [1, 2, 3, 7, 16, 33]  # of 64
TS = torch.tensor([0.0, 0.15, 0.7, 1.0])
EXPLICIT = [
    *(solver(rtol=1e-4, atol=1e-5) for solver in (ode.Heun, ti.Bosh3, ti.Tsit5, ti.Dopri5, ti.Dopri8)),
    *(solver(dt=0.1) for solver in (ode.Euler, ode.Midpoint, ode.RK4)),
    ti.Tsit5(control=ti.Fixed(0.1)),
]
IMPLICIT = [solver(rtol=1e-4, atol=1e-5) for solver in (ti.Kvaerno3, ti.ESDIRK54)]
NOISY = [
    *(method(dt=0.1) for method in (sde.EulerMaruyama, sde.SRA1, sde.ShARK, sde.SRID2, sde.Milstein)),
    *(method(dt=0.1) for method in (sde.Heun, sde.Midpoint, sde.ReversibleHeun, sde.LogODE)),
    sde.Heun(rtol=1e-2, atol=1e-2),
]


def states(dtype, width=3):
    return torch.randn(64, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def pull(t, y):
    return (0.3 * y - y * y / (1 + y * y)) * (1 + t)


def alike(solve):
    """Whether the first samples of 64 are what fewer of them are, values and steps."""
    whole = solve(64)
    assert whole.report.converged
    for size in SIZES:
        part = solve(size)
        assert torch.equal(part.value, whole.value[:, :size]), size
        assert torch.equal(part.report.steps, whole.report.steps[:size]), size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", EXPLICIT + IMPLICIT, ids=str)
def test_ordinary(solver, dtype):
    y0, ts = states(dtype), TS.to(dtype)
    alike(lambda size: ti.odeint(pull, y0[:size], ts, solver=solver))


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.Dopri8(), ti.Kvaerno3(), ode.RK4(dt=0.1)], ids=str)
def test_wide_states(solver):
    y0 = states(torch.float64, 70)
    alike(lambda size: ti.odeint(pull, y0[:size], TS.double(), solver=solver))


@pytest.mark.parametrize("solver", [ode.Leapfrog(dt=0.1), ode.Suzuki4(dt=0.1)], ids=str)
def test_symplectic(solver):
    y0 = states(torch.float64, 6)

    def force(t, y):
        q, p = y.chunk(2, 1)
        return torch.cat((p, -q - q**3), 1)

    alike(lambda size: ti.odeint(force, y0[:size], TS.double(), solver=solver))


@pytest.mark.parametrize("solver", NOISY, ids=str)
def test_stochastic(solver):
    y0, additive = states(torch.float64), isinstance(solver, sde.SRA1 | sde.ShARK)
    noise, seeds = "additive" if additive else "diagonal", torch.arange(64)

    def spread(t, y):
        return (0.2 + 0.1 * t).expand_as(y) if additive else 0.2 + 0.1 * y / (1 + y * y)

    def solve(size):
        options: Any = {"noise": noise, "calculus": solver.calculus, "brownian": sde.Brownian(seed=seeds[:size])}
        return ti.sdeint(pull, spread, y0[:size], TS.double(), solver=solver, **options)

    alike(solve)


@pytest.mark.parametrize("solver", [sde.EulerMaruyama(dt=0.1), sde.Heun(dt=0.1), sde.LogODE(dt=0.1)], ids=str)
def test_general_noise(solver):
    y0, seeds, ways = states(torch.float64, 40), torch.arange(64), torch.linspace(0, 1, 11, dtype=torch.float64)

    def spread(t, y):
        return 0.1 * y.unsqueeze(2) * ways

    def solve(size):
        options: Any = {"noise": "general", "calculus": solver.calculus, "brownian": sde.Brownian(seed=seeds[:size])}
        return ti.sdeint(pull, spread, y0[:size], TS.double(), solver=solver, **options)

    alike(solve)


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.Dopri8(), ti.Bosh3(), ti.Kvaerno3()], ids=str)
def test_the_path_inside_steps_and_its_slopes(solver):
    y0, ts, at = states(torch.float64), TS.double(), torch.linspace(0, 1, 11, dtype=torch.float64)
    whole = ti.odeint(pull, y0, ts, solver=solver, dense=True)
    for size in SIZES:
        part = ti.odeint(pull, y0[:size], ts, solver=solver, dense=True)
        assert torch.equal(part.path(at), whole.path(at)[:, :size])
        assert torch.equal(part.path.derivative(at), whole.path.derivative(at)[:, :size])


@pytest.mark.parametrize("adjoint", [ti.Direct(), ti.Checkpointed(), ti.Backsolve(), ti.Reversible()], ids=str)
def test_gradients_of_the_start(adjoint):
    y0, ts = states(torch.float64), TS.double()

    def gradient(size):
        start = y0[:size].clone().requires_grad_()
        ti.odeint(pull, start, ts, adjoint=adjoint).value.square().sum().backward()
        return start.grad

    whole = gradient(64)
    for size in SIZES:
        assert torch.equal(gradient(size), whole[:size])

"""The order of every method, measured at the ends of its steps and inside them."""

import math

import pytest
import torch

import torchimplicit as ti
from torchimplicit.ode.methods import FixedSolver
from torchimplicit.ode.stiff import StiffSolver

ONE_SIZE = ti.PID(smallest=0.9999999, largest=1.0000001)


def field(t, y):
    growth, decay = y.unbind(1)
    return torch.stack((growth * torch.cos(t.view(-1)), -2 * t.view(-1) * decay**2), 1)


def split_field():
    def explicit(t, y):
        growth, decay = y.unbind(1)
        return torch.stack((growth * torch.cos(t.view(-1)), -1.5 * t.view(-1) * decay**2), 1)

    def implicit(t, y):
        decay = y[:, 1]
        return torch.stack((torch.zeros_like(decay), -0.5 * t.view(-1) * decay**2), 1)

    return ti.Split(explicit, implicit)


def exact(t):
    return torch.stack((torch.exp(torch.sin(t)), 1 / (1 + t * t)), -1)


def solver_of(method, h):
    if issubclass(method, FixedSolver):
        return method(dt=h)
    exactly = {"stage_tol": 1e-20, "newton_steps": 50} if issubclass(method, StiffSolver) else {}
    return method(rtol=1e6, atol=1e6, dt0=h, control=ONE_SIZE, **exactly)


def error(method, h, inside):
    ts = torch.tensor([0.0, 2.0], dtype=torch.float64)
    if inside:
        starts = h * torch.arange(round(2 / h), dtype=torch.float64)
        within = starts.unsqueeze(1) + h * torch.tensor([0.3, 0.62, 0.85], dtype=torch.float64)
        ts = torch.cat((ts[:1], within.flatten(), ts[1:]))
    f = split_field() if method is ti.KenCarp4 else field
    start = torch.ones(1, 2, dtype=torch.float64)
    found = ti.odeint(f, start, ts, solver=solver_of(method, h)).value[1:, 0]
    return float((found - exact(ts[1:])).abs().max())


@pytest.mark.parametrize("inside", [False, True], ids=["ends", "inside"])
@pytest.mark.parametrize(
    ("method", "order", "h"),
    [
        (ti.Euler, 1, 0.02),
        (ti.Midpoint, 2, 0.02),
        (ti.Heun, 2, 0.05),
        (ti.Bosh3, 3, 0.1),
        (ti.RK4, 4, 0.1),
        (ti.Dopri5, 5, 0.1),
        (ti.Tsit5, 5, 0.1),
        (ti.Dopri8, 8, 0.25),
        (ti.Kvaerno3, 3, 0.1),
        (ti.KenCarp4, 4, 0.1),
        (ti.ESDIRK54, 5, 0.2),
    ],
)
def test_the_order_is_as_stated(method, order, h, inside):
    assert method.order == order
    measured = math.log2(error(method, h, inside) / error(method, h / 2, inside))
    assert order - 0.25 < measured < order + 0.6


def test_dopri8_evaluates_its_extra_stages_only_where_an_output_lies_inside_a_step():
    start = torch.ones(1, 2, dtype=torch.float64)
    solver = solver_of(ti.Dopri8, 0.5)
    ends = ti.odeint(field, start, torch.tensor([0.0, 2.0], dtype=torch.float64), solver=solver).report
    inside = ti.odeint(field, start, torch.tensor([0.0, 0.7, 0.8, 2.0], dtype=torch.float64), solver=solver).report
    assert int(ends.steps[0]) == int(inside.steps[0]) == 4
    assert inside.nfev == ends.nfev + 3


def test_dopri8_needs_fewer_evaluations_at_tight_tolerances_and_meets_them():
    start, ts = torch.ones(1, 2, dtype=torch.float64), torch.linspace(0, 6, 5, dtype=torch.float64)
    high, low = (ti.odeint(field, start, ts, solver=method(rtol=1e-11, atol=1e-11)) for method in (ti.Dopri8, ti.Tsit5))
    assert high.report.nfev < 0.5 * low.report.nfev
    assert float((high.value[:, 0] - exact(ts)).abs().max()) < 1e-9

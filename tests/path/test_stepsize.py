"""Which steps are accepted, and which backward solves are believed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit.path.adjoint.drift import LIMIT, judge

S = ti.Status


def first_step(atol):
    ts, start = torch.tensor([0.0, 0.5], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    solver = ti.Tsit5(rtol=1e-300, atol=atol, dt0=0.5)
    with torch.no_grad():
        return ti.odeint(lambda t, y: -(y**2), start, ts, solver=solver).report


def test_a_step_is_accepted_up_to_its_tolerance_and_not_beyond():
    error = first_step(1.0).residual.item()  # the estimate over a tolerance of one
    assert 1e-8 < error < 1e-2
    assert first_step(error * 1.02).rejected.item() == 0
    assert first_step(error * 1.02).residual.item() == pytest.approx(1 / 1.02)
    assert first_step(error / 1.02).rejected.item() >= 1
    assert first_step(error / 1.9).rejected.item() >= 1


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_tolerance_is_relative_to_the_state(size):
    ts, start = torch.tensor([0.0, 2.0], dtype=torch.float64), torch.full((1, 2), size, dtype=torch.float64)
    solver = ti.Tsit5(rtol=1e-8, atol=1e-12 * size)
    solution = ti.odeint(lambda t, y: -y * (1 + t), start, ts, solver=solver)
    assert (solution.value[-1] / (size * math.exp(-4)) - 1).abs().max() < 1e-6
    assert solution.report.accepted.item() > 10


@pytest.mark.parametrize("solver", [ti.Bosh3, ti.Tsit5, ti.Dopri5, ti.Dopri8])
@settings(max_examples=10)
@given(st.floats(-12, 2), st.floats(-6, -4), st.floats(-6, 6))
def test_a_path_is_the_same_in_any_unit_of_time(solver, power, accuracy, size):
    """The first step is: one of a state's own time, where the estimate of `Bosh3` is blind to a decay, was accepted."""
    unit, size, solver = 10**power, 10**size, solver(rtol=10**accuracy, atol=0.0)
    ts = torch.linspace(0, 3, 4, dtype=torch.float64)
    start = torch.full((1, 1), size, dtype=torch.float64)
    solution = ti.odeint(lambda t, y: -y / unit, start, ts * unit, solver=solver)
    usual = ti.odeint(lambda t, y: -y, start / size, ts, solver=solver)
    assert abs(solution.report.steps.item() - usual.report.steps.item()) <= 1  # rounding may decide at the limit
    error = (solution.value.flatten() / size - torch.exp(-ts)).abs().max()
    assert error <= 10 * solution.report.steps.item() * 10**accuracy


def test_a_backward_solve_that_breaks_down_or_leads_elsewhere_has_drifted():
    status = torch.tensor([S.CONVERGED, S.CONVERGED, S.CONVERGED, S.STEP_TOO_SMALL, S.NON_FINITE, S.MAX_STEPS])
    drift = torch.tensor([0.0, 1.01 * LIMIT, math.nan, 0.0, 0.0, 0.0])
    judged, drift = judge(status, drift)
    assert judged.tolist() == [S.CONVERGED, S.DRIFTED, S.DRIFTED, S.DRIFTED, S.DRIFTED, S.MAX_STEPS]
    assert drift[3] == drift[4] == math.inf

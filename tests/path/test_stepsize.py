"""Which steps are accepted, and which backward solves are believed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit.path.adjoint.drift import LIMIT, judge
from torchimplicit.path.state import IntegratorState

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


def contraction(solver, tol, count=2000):
    """Errors over tolerances of linear contractions that die away at times of their own, as a score's flow does."""
    generator = torch.Generator().manual_seed(0)
    d = torch.logspace(math.log10(0.02), math.log10(5), count, dtype=torch.float64).unsqueeze(1)
    y0 = torch.randn(count, 1, dtype=torch.float64, generator=generator) * (80**2 + d**2).sqrt()
    ts = -torch.tensor([80, 0.002], dtype=torch.float64).log()
    solver = solver(rtol=tol, atol=tol)
    solution = ti.odeint(lambda t, y, d: -y / (1 + (d * t.exp()) ** 2), y0, ts, d, solver=solver)
    exact = y0 * ((0.002**2 + d**2) / (80**2 + d**2)).sqrt()
    return (solution.value[-1] - exact).abs() / (tol * (1 + exact.abs()))


@pytest.mark.parametrize(("solver", "bound"), [(ti.Tsit5, 3), (ti.Dopri5, 2), (ti.Bosh3, 10), (ti.Dopri8, 1)])
@pytest.mark.parametrize("tol", [1e-3, 1e-4])
def test_an_estimate_that_changes_its_sign_gives_no_step_that_leaps_over_the_path(solver, bound, tol):
    """Tenfold steps after an error of about zero were off by up to 45 tolerances, each accepted, one sample in 500."""
    assert contraction(solver, tol).max() < bound


def test_steps_that_may_grow_for_long_do():
    ts = torch.tensor([0.0, 1e12], dtype=torch.float64)
    report = ti.odeint(lambda t, y: -y / (1 + t) ** 2, torch.ones(1, 1, dtype=torch.float64), ts).report
    assert report.steps.item() < 50


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0.01, 10), st.booleans()), min_size=1, max_size=12))
def test_no_step_is_longer_than_twice_what_the_one_before_the_last_allowed(errors):
    state, before = IntegratorState.start(torch.zeros(2, 1), torch.zeros(1, 1)), math.inf
    state.most = torch.full((1,), math.inf)
    for allowed, accepted in errors:
        state.plan(torch.tensor([allowed]), torch.ones(1), torch.tensor([accepted]))
        assert state.h.item() == pytest.approx(min(allowed, 2 * before))
        before = allowed


def test_a_backward_solve_that_breaks_down_or_leads_elsewhere_has_drifted():
    status = torch.tensor([S.CONVERGED, S.CONVERGED, S.CONVERGED, S.STEP_TOO_SMALL, S.NON_FINITE, S.MAX_STEPS])
    drift = torch.tensor([0.0, 1.01 * LIMIT, math.nan, 0.0, 0.0, 0.0])
    judged, drift = judge(status, drift)
    assert judged.tolist() == [S.CONVERGED, S.DRIFTED, S.DRIFTED, S.DRIFTED, S.DRIFTED, S.MAX_STEPS]
    assert drift[3] == drift[4] == math.inf

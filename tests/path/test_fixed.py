"""`Fixed`: steps of one size by methods that could choose their own."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit import Status

ADAPTIVE = [ti.Heun, ti.Bosh3, ti.Dopri5, ti.Tsit5, ti.Dopri8, ti.Kvaerno3, ti.ESDIRK54]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def decay(t, y):
    return -y


@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_step_is_of_that_size_and_none_is_rejected(method):
    seen = []
    solution = ti.odeint(
        decay, double(1, 1e3)[:, None], double(0, 1), solver=method(rtol=1e-12, atol=0.0, control=ti.Fixed(0.3)),
        callback=lambda t, y, moved: seen.append(t),
    )  # fmt: skip
    assert torch.allclose(torch.stack(seen), double(0.3, 0.6, 0.9, 1.0)[:, None].expand(-1, 2), rtol=0, atol=1e-15)
    assert solution.report.accepted.tolist() == [4, 4]
    assert not solution.report.rejected.any()
    assert torch.allclose(solution.value[-1, :, 0], double(1, 1e3) * math.exp(-1), rtol=2e-2)


def test_without_a_size_a_step_leads_from_output_to_output():
    ts = double(0, 0.1, 0.5, 2)
    found = ti.odeint(decay, double(1)[None], ts, solver=ti.Heun(control=ti.Fixed(None)))
    h = ts.diff()
    assert torch.allclose(found.value[1:, 0, 0], (1 - h + h**2 / 2).cumprod(0))


@given(st.floats(0.01, 5), st.floats(0.1, 3), st.booleans())
def test_as_many_steps_are_made_as_the_length_holds(dt, length, backward):
    ts = double(length, 0) if backward else double(0, length)
    fixed = ti.odeint(lambda t, y: torch.cos(t) * y, double(1)[None], ts, solver=ti.Heun(control=ti.Fixed(dt)))
    assert fixed.report.converged
    assert int(fixed.report.steps) == math.ceil(length / dt - 1e-6)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct(), ti.Reversible()], ids=str)
def test_gradients_are_those_of_the_steps(adjoint):
    def end(rate):
        options = {"solver": ti.Tsit5(control=ti.Fixed(0.21)), "adjoint": adjoint}
        return ti.odeint(lambda t, y, rate: -rate * y, double(2)[None], double(0, 1), rate, **options).value[-1]

    rate = double(1.5).requires_grad_()
    assert torch.autograd.gradcheck(end, rate, atol=1e-8)


def test_a_continuous_adjoint_integrates_back_in_such_steps():
    rate, solver = double(0.5).requires_grad_(), ti.Dopri5(rtol=1e-12, atol=1e-12, control=ti.Fixed(0.05))
    for seminorm in (True, False):
        adjoint = ti.Backsolve(seminorm=seminorm)
        solution = ti.odeint(
            lambda t, y, r: -r * y, double(2)[None], double(0, 1), rate, solver=solver, adjoint=adjoint
        )
        (found,) = torch.autograd.grad(solution.value[-1].sum(), rate)
        assert float(found) == pytest.approx(-2 * math.exp(-0.5), rel=1e-9)
        assert solution.backward.converged
        assert int(solution.backward.steps) == 20
        assert not solution.report.adapts
        assert not solution.backward.adapts


def test_an_unsolved_stage_is_a_failure_and_no_step():
    def field(t, y):  # no stage has a solution once t > 0.5
        return torch.where(t > 0.5, 10 + 10 * y.abs() ** 2, -y)

    solution = ti.odeint(
        field, double(1, 1)[:, None], double(0, 1), solver=ti.ESDIRK54(control=ti.Fixed(0.25)), on_failure="ignore"
    )
    assert solution.report.status.tolist() == [Status.STEP_TOO_SMALL] * 2
    assert solution.report.reached.tolist() == [0.5, 0.5]
    assert torch.allclose(solution.value[-1, 0], double(math.exp(-0.5)), rtol=1e-4)


def test_a_field_that_is_not_finite_fails_its_sample_alone():
    for solver in (ti.Tsit5(control=ti.Fixed(0.25)), ti.ESDIRK54(control=ti.Fixed(0.25))):
        found = ti.odeint(
            lambda t, y, bad: -y + torch.where((t > 0.5) & bad, torch.nan, 0.0), double(1, 1)[:, None], double(0, 1),
            torch.tensor([[True], [False]]), solver=solver, on_failure="ignore",
        )  # fmt: skip
        assert found.report.status.tolist() == [Status.NON_FINITE, Status.CONVERGED]


def test_events_and_dense_output_know_the_path_inside():
    solver = ti.Tsit5(control=ti.Fixed(0.4))
    event = ti.Event(lambda t, y: y[:, 0] - 0.5)
    met = ti.odeint(decay, double(1)[None], double(0, 2), solver=solver, event=event, dense=True)
    assert float(met.event_time) == pytest.approx(math.log(2), abs=1e-4)
    assert float(met.path(0.5)) == pytest.approx(math.exp(-0.5), abs=1e-4)


@pytest.mark.parametrize("dt", [0.0, -1.0, math.inf, math.nan, "a", True, double(0.1)], ids=str)
def test_impossible_sizes_are_refused(dt):
    for owner, name, make in (("Fixed", "dt", ti.Fixed), ("RK4", "dt", ti.RK4), ("Tsit5", "dt0", ti.Tsit5)):
        text = f"{owner}({name}={dt!r}): expected a number > 0, or None"
        with pytest.raises(ValueError, match=re.escape(text)):
            make(**{name: dt})


def test_what_needs_steps_that_are_chosen_refuses_it():
    solver = ti.Tsit5(control=ti.Fixed(0.1))
    with pytest.raises(ValueError, match="looks at the last error alone"):
        ti.odeint(decay, double(1)[None], double(0, 1), solver=solver, compile=True)
    with pytest.raises(ValueError, match=r"dt_max: got 0\.1 with Tsit5.*try Tsit5\(control=Fixed\(\.\.\.\)\)"):
        ti.odeint(decay, double(1)[None], double(0, 1), solver=solver, dt_max=0.1)
    with pytest.raises(ValueError, match="PID"):
        ti.SteadyState(solver=solver)
    with pytest.raises(ValueError, match=r"a PID\(\), or Fixed\(dt\)"):
        ti.Tsit5(control=0.1)


def test_the_report_is_of_the_states_dtype():
    for ts in (torch.linspace(0, 1, 2), torch.linspace(0, 1, 4)):
        report = ti.odeint(lambda t, y: -y, torch.ones(2, 1).double(), ts.double(), solver=ti.RK4(dt=0.5)).report
        assert report.residual.dtype == torch.float64

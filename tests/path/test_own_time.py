"""What a step may be and where an event is: of the sample's own time, not of the batch's or of the horizon."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti

D = torch.float64


def tensor(*values, dtype=D):
    return torch.tensor(values, dtype=dtype)


def robertson(t, y):
    a, b, c = y.unbind(1)
    slow, back, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack((back - slow, slow - back - fast, fast), 1)


START = tensor(1.0, 0.0, 0.0).unsqueeze(0)


@pytest.mark.parametrize(("solver", "digits"), [(ti.Kvaerno3(), 0.2), (ti.ESDIRK54(rtol=1e-6, atol=1e-10), 2e-2)])
def test_robertson_to_the_end(solver, digits):
    """The values are those of the test set of F. Mazzia and C. Magherini (2008)."""
    found = ti.odeint(robertson, START, tensor(0.0, 1e11), solver=solver)
    assert found.report.converged
    assert torch.allclose(found.value[-1, 0], tensor(0.2083340149701255e-7, 0.8333360770334713e-13, 1.0), rtol=digits)


def test_robertson_in_parts_to_the_end():
    field = ti.Split(lambda t, y: torch.zeros_like(y), robertson)
    found = ti.odeint(field, START, tensor(0.0, 1e11), solver=ti.KenCarp4(rtol=1e-4, atol=1e-10))
    assert abs(float(found.value[-1, 0, 0]) / 0.2083340149701255e-7 - 1) < 0.2


HORIZONS = (1e-2, 1.0, 1e7, 1e8, 1e11, 1e15)


def test_the_time_of_an_event_does_not_depend_on_the_horizon():
    event = ti.Event(lambda t, y: 3e7 * y[:, 1] ** 2 - 0.03)
    solver = ti.ESDIRK54(rtol=1e-8, atol=1e-12)
    found = [ti.odeint(robertson, START, tensor(0.0, last), solver=solver, event=event) for last in HORIZONS]
    assert len({each.event_time.item() for each in found}) == 1
    assert abs(found[0].event_time.item() - 0.00120239) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("last", [2.5, 1e5, 1e10, 1e15])
def test_an_event_before_a_far_horizon(dtype, last):
    start, event = torch.zeros(1, 1, dtype=dtype), ti.Event(lambda t, y: y[:, 0] ** 3 - 8)
    found = ti.odeint(lambda t, y: torch.ones_like(y), start, tensor(0.0, last, dtype=dtype), event=event)
    assert abs(found.event_time.item() - 2) < 50 * torch.finfo(dtype).eps


@given(unit=st.floats(-12, 12), far=st.floats(0.5, 15), start=st.sampled_from([0.0, 3.0, -2.0]))
@settings(max_examples=12, derandomize=True)
def test_event_times_in_any_unit_before_any_horizon(unit, far, start):
    """Decay to a half, in units of time from 1e-12 to 1e12, counted from elsewhere, to horizons up to 1e15 units."""
    tau = 10.0**unit
    ts = tau * tensor(start, start + 10.0**far)
    found = ti.odeint(
        lambda t, y: -y / tau, torch.ones(1, 1, dtype=D), ts, solver=ti.ESDIRK54(rtol=1e-7, atol=1e-9),
        event=ti.Event(lambda t, y: y[:, 0] - 0.5),
    )  # fmt: skip
    assert abs(found.event_time.item() / tau - start - tensor(2.0).log().item()) < 1e-6


@pytest.mark.parametrize(
    "solver", [ti.Tsit5(max_steps=300), ti.Dopri8(max_steps=300), ti.Kvaerno3(), ti.ESDIRK54()], ids=str
)
def test_two_horizons_as_each_alone_to_the_bit(solver):
    def field(t, y):
        return torch.stack((y[:, 1], -y[:, 0] / (1 + t[:, 0]) - y[:, 1]), 1)

    start, ts = tensor([1.0, 0.3], [0.5, 0.2]), tensor([0.0, 0.0], [1.0, 1e13])
    both = ti.odeint(field, start, ts, solver=solver, on_failure="ignore")
    for k in range(2):
        alone = ti.odeint(field, start[k : k + 1], ts[:, k], solver=solver, on_failure="ignore")
        assert torch.equal(alone.value[:, 0], both.value[:, k])
        assert torch.equal(alone.status[0], both.status[k])
        assert torch.equal(alone.steps[0], both.steps[k])


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.Dopri8(), ti.Kvaerno3(), ti.ESDIRK54(), ti.RK4(dt=1.0)], ids=str)
def test_steps_below_the_rounding_of_time_end_at_once(solver):
    """Seconds since 1970 in single precision have a rounding of 128."""
    start, ts = torch.ones(1, 1), tensor(1.7e9, 1.7e9 + 1024, dtype=torch.float32)
    found = ti.odeint(lambda t, y: -y, start, ts, solver=solver, on_failure="ignore")
    assert found.status.tolist() == [ti.Status.STEP_TOO_SMALL]
    assert int(found.steps) <= 3
    assert "times in float64" in found.report.remedies[ti.Status.STEP_TOO_SMALL]
    assert ti.odeint(lambda t, y: -y, start, ts.double(), solver=solver).report.converged


def test_a_field_that_ends_right_after_zero_is_given_up_soon():
    found = ti.odeint(
        lambda t, y: torch.where(t > 0, torch.nan, -y), torch.ones(1, 1, dtype=D), tensor(0.0, 1.0), on_failure="ignore"
    )
    assert found.status.tolist() == [ti.Status.NON_FINITE]
    assert int(found.steps) < 100


def test_steps_may_shrink_to_the_rounding_of_time_and_grow_again():
    """A step that time's rounding swallows is planned larger, and does not stand still for ever."""
    start, ts = torch.ones(1, 1), tensor(1e6, 1e6 + 4, dtype=torch.float32)  # a rounding of 1/16
    field = lambda t, y: -40 * (y - 1) * (t - 1e6) - 3 * y * torch.exp(-40 * (t - 1e6 - 2) ** 2)  # noqa: E731
    found = ti.odeint(field, start, ts, solver=ti.Tsit5(rtol=1e-4, atol=1e-4, max_steps=500), on_failure="ignore")
    assert found.status.item() in (ti.Status.CONVERGED, ti.Status.STEP_TOO_SMALL)

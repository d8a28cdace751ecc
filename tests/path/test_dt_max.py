"""The largest step: what is shorter than a free step is seen with it, by every kind of solve."""

import math

import pytest
import torch

import torchimplicit as ti
from torchimplicit.ode.compiled.kernel import can_compile

ONE = torch.ones(1, 1, dtype=torch.float64)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def pulse(t, y):
    """A pulse of a tenth, at 5."""
    return torch.exp(-(((t - 5) / 0.05) ** 2)) - 0.1 * y


def after_pulse(t):
    return 0.05 * math.sqrt(math.pi) * math.exp(-0.1 * (t - 5) + (0.1 * 0.05) ** 2 / 4)


ADAPTIVE = [ti.Tsit5(), ti.Dopri5(), ti.Dopri8(rtol=1e-5), ti.Bosh3(), ti.Heun(), ti.Kvaerno3(), ti.ESDIRK54()]


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda solver: type(solver).__name__)
def test_a_pulse_that_free_steps_miss_is_seen(solver):
    ts = double(0, 20)
    assert float(ti.odeint(pulse, 0 * ONE, ts, solver=solver).value[-1]) < 1e-9  # in silence
    seen = ti.odeint(pulse, 0 * ONE, ts, solver=solver, dt_max=0.1)
    assert float(seen.value[-1]) == pytest.approx(after_pulse(20), rel=1e-2)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct(), ti.Reversible(), ti.Backsolve()], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_adjoint_keeps_to_it(adjoint, sign):
    width, at = double(0.05).requires_grad_(), double(5.0)

    def own(t, y, width, at):
        return sign * (torch.exp(-(((sign * t - at) / width) ** 2)) - 0.1 * y)

    solution = ti.odeint(own, 0 * ONE, sign * double(0, 20), width, at, adjoint=adjoint, dt_max=0.1)
    (slope,) = torch.autograd.grad(solution.value[-1].sum(), width)
    assert float(slope) == pytest.approx(after_pulse(20) / 0.05, rel=1e-2)
    assert int(solution.report.accepted) >= 200
    if isinstance(adjoint, ti.Backsolve):
        assert int(solution.backward.accepted) >= 200


def test_no_step_is_longer_and_every_sample_has_its_own():
    y0 = torch.ones(4, 1, dtype=torch.float64)
    largest = double(0.1, 1, math.inf, 0.03)
    together = ti.odeint(lambda t, y: -y, y0, double(0, 3), dt_max=largest, batched_args=())
    accepted = [int(ti.odeint(lambda t, y: -y, ONE, double(0, 3), dt_max=each).report.accepted) for each in largest]
    assert together.report.accepted.tolist() == accepted
    assert accepted[0] in (30, 31)
    assert accepted[3] in (100, 101)
    free = ti.odeint(lambda t, y: -y, y0, double(0, 3))
    assert torch.equal(free.value[:, 2], together.value[:, 2])


def test_events_and_dense_output_keep_to_it():
    dose = ti.Event(lambda t, y: y[:, 0] - 0.05)
    missed = ti.odeint(pulse, 0 * ONE, double(0, 20), event=dose)
    assert not bool(missed.fired)
    seen = ti.odeint(pulse, 0 * ONE, double(0, 20), event=dose, dense=True, dt_max=0.1)
    assert float(seen.event_time.detach()) == pytest.approx(5.01, abs=0.01)
    assert float(seen.path(5.0).detach()) == pytest.approx(0.05 * math.sqrt(math.pi) / 2, rel=2e-2)


def test_with_jumps_and_joint_steps():
    value = ti.odeint(
        pulse, 0 * ONE, double(0, 20), jumps=double(2), doses=ONE[None], dt_max=0.1, stepping="joint"
    ).value  # fmt: skip
    assert float(value[-1]) == pytest.approx(after_pulse(20) + math.exp(-1.8), rel=1e-2)


def test_compiled_solves_keep_to_it(monkeypatch):
    monkeypatch.setattr("torchimplicit.core.compiled.kernel.BACKEND", "eager")
    assert can_compile(ti.Tsit5())
    y0, largest = torch.zeros(2, 1, dtype=torch.float64), double(0.1, 0.2)
    plain = ti.odeint(pulse, y0, double(0, 20), dt_max=largest)
    compiled = ti.odeint(pulse, y0, double(0, 20), dt_max=largest, compile=True)
    assert torch.allclose(compiled.value, plain.value, rtol=1e-9, atol=0)
    assert compiled.report.accepted.tolist() == plain.report.accepted.tolist()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dt_max": 0.1, "solver": ti.RK4(dt=0.1)}, ValueError, r"expected an adaptive solver(.|\n)*RK4\(dt=\.\.\.\)"),
        ({"dt_max": 0.1, "solver": ti.Tsit5(control=ti.Fixed(0.1))}, ValueError, r"Tsit5\(control=Fixed\(\.\.\.\)\)"),
        ({"dt_max": 0.0}, ValueError, r"expected steps above dt_min=0\.0"),
        ({"dt_max": math.nan}, ValueError, r"expected steps above"),
        ({"dt_max": 0.1, "solver": ti.Tsit5(dt_min=0.2)}, ValueError, r"expected steps above dt_min=0\.2"),
        ({"dt_max": double(1, 2, 3)}, ValueError, r"got a tensor of shape \(3,\), expected a number, or \(1,\)"),
        ({"dt_max": "small"}, TypeError, r"dt_max: got a str"),
        ({"dt_max": True}, TypeError, r"dt_max: got a bool"),
    ],
    ids=str,
)
def test_refused(options, error, words):
    with pytest.raises(error, match=words):
        ti.odeint(lambda t, y: -y, ONE, double(0, 1), **options)


def test_vmap_takes_one_for_all():
    def last(y0):
        return ti.odeint(lambda t, y: -y, y0, double(0, 1), dt_max=double(0.1)).value[-1]

    starts = torch.rand(3, 1, 1, dtype=torch.float64)
    assert torch.allclose(torch.vmap(last)(starts), starts * math.exp(-1), rtol=1e-6)
    with pytest.raises(ValueError, match=r"the same whatever torch\.vmap maps"):
        torch.vmap(lambda largest: ti.odeint(lambda t, y: -y, ONE, double(0, 1), dt_max=largest).value)(double(1, 2))

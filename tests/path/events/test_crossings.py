"""Several events in one solve, and events that a solve passes by: where they are, and their gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import torchimplicit as ti
from torchimplicit.ode import Event

D = torch.float64
TIGHT = ti.Tsit5(rtol=1e-10, atol=1e-12)
STIFF = [ti.Kvaerno3(rtol=1e-4, atol=1e-4), ti.ESDIRK54(rtol=1e-7, atol=1e-7)]
SOLVERS = [
    ti.Bosh3(rtol=1e-5, atol=1e-6),
    ti.Dopri5(rtol=1e-7),
    ti.Tsit5(rtol=1e-7),
    ti.Dopri8(rtol=1e-8),
    ti.RK4(dt=0.1),
    *STIFF,
]
ADJOINTS = [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()]


def double(*values):
    return torch.tensor(values, dtype=D)


def swing(t, y, w):
    return torch.stack((y[:, 1], -(w**2) * y[:, 0]), 1)


def place(t, y, w):
    return y[:, 0]


def speed(t, y, w):
    return y[:, 1]


def zeros(y0, w, count):
    """The first times at which `a cos(w t - phi)` is zero, `(count, B)`."""
    phase = torch.atan2(y0[:, 1] / w, y0[:, 0])
    first = (phase + math.pi / 2) % math.pi
    return (first + math.pi * torch.arange(count, dtype=D)[:, None]) / w


START = double([1.0, 0.3], [0.2, -1.0], [-2.0, 0.1])


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_zeros_of_an_oscillator(solver, adjoint):
    """Times and states of all of them, and their gradients, against closed forms."""
    y0, w = START.clone().requires_grad_(), double(1.3)[0].requires_grad_()
    event = Event(place, terminal=False)
    found = ti.odeint(swing, y0, double(0.0, 7.0), w, solver=solver, adjoint=adjoint, event=event)
    (crossings,) = found.crossings
    exact = zeros(y0, w, 3)
    assert torch.equal(crossings.mask, exact < 7)
    assert bool(crossings.time.isnan().equal(~crossings.mask))
    mask, time, atol = crossings.mask, exact.detach(), 2e-2 if isinstance(solver, ti.Kvaerno3) else 5e-4
    assert torch.allclose(crossings.time[mask], time[mask], atol=atol)
    assert bool((crossings.state[..., 0][mask].abs() < 1e-14).all())
    bound = (y0[:, 1] ** 2 + (w * y0[:, 0]) ** 2).sqrt()
    assert torch.allclose(crossings.state[..., 1].abs()[mask], bound.expand(len(mask), -1)[mask], atol=atol)
    assert not found.fired.any()
    assert bool((found.event_index == -1).all())
    assert found.event_time.isnan().all()
    weights = torch.linspace(-1, 2, mask.numel(), dtype=D).view(mask.shape)
    for one, other in (
        ((crossings.time * weights)[mask].sum(), (exact * weights)[mask].sum()),
        ((crossings.state[..., 1] ** 2 * weights)[mask].sum(), (bound**2 * weights)[mask].sum()),
    ):
        for slope, right in zip(
            *(torch.autograd.grad(each, (y0, w), retain_graph=True) for each in (one, other)), strict=True
        ):
            assert torch.allclose(slope, right, rtol=10 * atol, atol=10 * atol)


def drag(t, y, g, k):
    return torch.stack((y[:, 1], -g + k * y[:, 1] ** 2), 1)


@pytest.mark.parametrize("solver", [ti.Tsit5(rtol=1e-9, atol=1e-10), STIFF[1]], ids=lambda each: type(each).__name__)
def test_a_ball_falls_past_a_mark_to_the_ground_with_drag(solver):
    height, g, k = (each.requires_grad_() for each in (double(5.0, 2.0), double(9.81)[0], double(0.1)[0]))
    mark = Event(lambda t, y, g, k: y[:, 0] - 1, direction=-1, terminal=False)
    ground = Event(lambda t, y, g, k: y[:, 0], direction=-1)
    start = torch.stack((height, torch.zeros_like(height)), 1)
    found = ti.odeint(drag, start, double(0.0, 9.0), g, k, solver=solver, event=[mark, ground])
    marks, grounds = found.crossings
    assert found.event_index.tolist() == [1, 1]
    assert torch.equal(grounds.time[0], found.event_time)
    assert torch.equal(grounds.state[0], found.event_state)
    for got, fallen in ((marks.time[0], height - 1), (found.event_time, height)):
        exact = torch.acosh(torch.exp(k * fallen)) / (g * k).sqrt()
        assert torch.allclose(got, exact, rtol=1e-7)
        pairs = (torch.autograd.grad(each.sum(), (height, g, k), retain_graph=True) for each in (got, exact))
        assert all(torch.allclose(*pair, rtol=1e-5) for pair in zip(*pairs, strict=True))


def test_the_first_of_several_ends_the_solve_and_those_behind_it_are_not_met():
    late, soon = (Event(lambda t, y, w, at=at: t[:, 0] - at) for at in (2.0, 1.0))
    passed = [Event(lambda t, y, w, at=at: t[:, 0] - at, terminal=False) for at in (0.9, 1.0, 1.1)]
    ts, w, events = double(0.0, 3.0), double(1.0)[0], [late, *passed, soon]
    found = ti.odeint(swing, START, ts, w, solver=ti.RK4(dt=1.5), event=events)
    assert found.event_index.tolist() == [4, 4, 4]
    assert torch.equal(found.event_time, double(1.0, 1.0, 1.0))
    assert [len(each.time) for each in found.crossings] == [0, 1, 1, 0, 1]
    assert found.crossings[0].state.shape == (0, 3, 2)
    same = ti.odeint(swing, START, ts, w, event=[soon, soon])
    assert same.event_index.tolist() == [0, 0, 0]
    assert [len(each.time) for each in same.crossings] == [1, 0]


def test_samples_that_no_event_ends_go_on():
    walls = [Event(lambda t, y, w, at=at: y[:, 0] - at, direction) for at, direction in ((-1.0, -1), (1.5, 1))]
    start = double([0.0, 2.0], [0.0, -2.0], [0.0, 0.5])
    found = ti.odeint(swing, start, double(0.0, 4.0), double(1.0)[0], solver=TIGHT, event=walls)
    assert found.event_index.tolist() == [1, 0, -1]
    assert found.fired.tolist() == [True, True, False]
    assert torch.allclose(found.event_time[:2], double(math.asin(0.75), math.asin(0.5)), atol=1e-9)
    assert torch.equal(found.event_state[2], found.value[-1, 2])
    assert [each.mask.tolist() for each in found.crossings] == [[[False, True, False]], [[True, False, False]]]


@pytest.mark.parametrize("direction", [-1, 0, 1])
@pytest.mark.parametrize("end", [9.0, -9.0])
def test_direction_and_time_that_runs_backward(direction, end):
    event = Event(place, direction, terminal=False)
    found = ti.odeint(swing, double([1.0, 0.0]), double(0.0, end), double(1.0)[0], solver=TIGHT, event=event)
    expected = {-1: [0.5, 2.5], 0: [0.5, 1.5, 2.5], 1: [1.5]}[direction]
    expected = [each * math.copysign(math.pi, end) for each in expected]
    assert found.crossings[0].time[:, 0].tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("solver", [ti.RK4(dt=0.25), ti.Tsit5(), ti.ESDIRK54(), ti.Leapfrog(dt=0.1)], ids=str)
def test_a_solve_is_not_changed_by_what_it_passes(solver):
    ts, w = torch.linspace(0, 3, 4, dtype=D), double(1.3)[0]
    found = ti.odeint(swing, START, ts, w, solver=solver, event=[Event(place, terminal=False), Event(speed, 1, False)])
    plain = ti.odeint(swing, START, ts, w, solver=solver)
    assert torch.equal(found.value, plain.value)
    assert torch.equal(found.steps, plain.steps)


def test_a_crossing_where_a_step_ends_is_one():
    event = Event(lambda t, y, w: t[:, 0] - 0.5, terminal=False)
    found = ti.odeint(swing, START, double(0.0, 1.0), double(1.0)[0], solver=ti.RK4(dt=0.25), event=event)
    assert found.crossings[0].time.tolist() == [[0.5] * 3]


@settings(max_examples=15)
@given(seed=st.integers(0, 999), batch=st.integers(1, 4), solver=st.sampled_from([ti.Tsit5(), ti.RK4(dt=0.3)]))
def test_events_of_a_batch_are_those_of_each_sample_alone(seed, batch, solver):
    draw = torch.Generator().manual_seed(seed)
    y0, w, level = (torch.randn(batch, *some, dtype=D, generator=draw) for some in ((2,), (1,), ()))
    events = [
        Event(lambda t, y, w, level: y[:, 0] - level, terminal=False),
        Event(lambda t, y, w, level: y[:, 1] + t[:, 0] / 9, -1, terminal=False),
        Event(lambda t, y, w, level: y[:, 0] + y[:, 1] - 1.5),
    ]

    def run(y0, w, level):
        inputs = [each.clone().requires_grad_() for each in (y0, w, level)]
        f = lambda t, y, w, level: torch.stack((y[:, 1], -torch.exp(w[:, 0]) * torch.sin(y[:, 0])), 1)  # noqa: E731
        found = ti.odeint(f, inputs[0], double(0.0, 2.0, 8.0), *inputs[1:], solver=solver, event=events)
        total = found.value.sum() + found.event_time.nansum()
        for i, each in enumerate(found.crossings):
            total = total + (1 + i) * (each.time.nansum() + torch.where(each.mask[..., None], each.state, 0.0).sum())
        return found, torch.autograd.grad(total, inputs)

    whole, slopes = run(y0, w, level)
    for i in range(batch):
        alone, own = run(y0[i : i + 1], w[i : i + 1], level[i : i + 1])
        assert alone.event_index.tolist() == whole.event_index[i : i + 1].tolist()
        assert torch.allclose(alone.event_time, whole.event_time[i], rtol=1e-12, equal_nan=True)
        for one, each in zip(alone.crossings, whole.crossings, strict=True):
            count = len(one.time)
            assert int(each.mask[:, i].sum()) == count
            assert torch.allclose(one.time[:, 0], each.time[:count, i], rtol=1e-11)
            assert torch.allclose(one.state[:, 0], each.state[:count, i], rtol=1e-9, atol=1e-11)
        for one, each in zip(own, slopes, strict=True):
            assert torch.allclose(one[0], each[i], rtol=1e-7, atol=1e-9)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), direction=st.sampled_from([-1, 0, 1]))
def test_crossings_are_those_of_scipy(seed, direction):
    draw = torch.Generator().manual_seed(seed)
    y0, A = torch.randn(2, dtype=D, generator=draw), torch.randn(2, 2, dtype=D, generator=draw)

    def f(t, y):
        return torch.tanh(y @ A) + torch.sin(3 * t)

    def level(t, y):
        return y[0] + 0.5 * y[1] - 0.1

    level.direction = direction
    expected = solve_ivp(
        lambda t, y: f(torch.tensor(t), torch.tensor(y)).numpy(),
        (0, 5), y0.numpy(), rtol=1e-10, atol=1e-12, events=level, max_step=0.05,
    )  # fmt: skip
    event = Event(lambda t, y: level(t, y.T), direction, terminal=False)
    found = ti.odeint(f, y0[None], double(0.0, 5.0), solver=ti.Tsit5(rtol=1e-10, atol=1e-12), event=event)
    (crossings,) = found.crossings
    assert len(crossings.time) == len(expected.t_events[0])
    for mine, theirs, state in zip(crossings.time[:, 0], expected.t_events[0], crossings.state[:, 0], strict=True):
        rate = float((f(mine[None], state[None])[0] @ double(1.0, 0.5)).abs())
        assert abs(float(mine) - theirs) < 1e-7 / max(rate, 1e-2)


@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
def test_second_derivatives(adjoint):
    def run(y0, w):
        events = [Event(place, terminal=False), Event(lambda t, y, w: y[:, 1] + w / 2)]
        options = {"solver": ti.Midpoint(dt=0.3), "adjoint": adjoint, "event": events}
        found = ti.odeint(lambda t, y, w: swing(t, y, w) * torch.cos(y), y0, double(0.0, 1.9), w, **options)
        assert found.fired.tolist() == [True, False]
        return [part.nan_to_num() for each in found.crossings for part in each[:2]]

    inputs = double([1.0, -0.3], [-0.2, 0.9]).requires_grad_(), double(1.4)[0].requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_transforms_go_through_crossings():
    def times(w):
        event = Event(place, terminal=False)
        found = ti.odeint(swing, START, double(0.0, 4.0), w, solver=ti.RK4(dt=0.25), event=event)
        return found.crossings[0].time.nansum()

    def exact(w):
        every = zeros(START, w, 2)
        return torch.where(every < 4, every, 0.0).sum()

    for derivative in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        assert torch.allclose(derivative(times)(double(1.3)[0]), derivative(exact)(double(1.3)[0]), rtol=1e-2)


def test_narrowing_does_not_matter():
    rate = torch.linspace(0.5, 50, 9000, dtype=D).reshape(-1, 1)
    ts = torch.stack((torch.zeros(9000, dtype=D), 3 / rate[:, 0]))
    marks = [Event(lambda t, y, rate, at=at: y[:, 0] - at, terminal=False) for at in (0.75, 0.25)]
    marks.append(Event(lambda t, y, rate: y[:, 0] - 0.1 * rate[:, 0]))

    def run(batched_args):
        start = torch.ones(9000, 2, dtype=D)
        return ti.odeint(lambda t, y, rate: -rate * y, start, ts, rate, batched_args=batched_args, event=marks)

    whole, narrowed = run(None), run((0,))
    assert torch.equal(whole.event_index, narrowed.event_index)
    for one, other in zip(whole.crossings, narrowed.crossings, strict=True):
        assert torch.equal(one.mask, other.mask)
        assert torch.allclose(one.time, other.time, rtol=1e-12, equal_nan=True)
        assert torch.allclose(one.state, other.state, rtol=1e-12)


def test_nested_states_and_joint_steps():
    start = {"z": torch.ones(2, 1, dtype=torch.complex128), "s": torch.zeros(2, dtype=D)}
    field = lambda t, y: {"z": 1j * y["z"], "s": torch.ones_like(y["s"])}  # noqa: E731
    events = [Event(lambda t, y: y["z"].real.squeeze(1), terminal=False), Event(lambda t, y: y["s"] - 9)]
    found = ti.odeint(field, start, double(0.0, 5.0), solver=TIGHT, event=events)
    first, none = found.crossings
    assert torch.allclose(first.state["s"], double([0.5, 0.5], [1.5, 1.5]) * math.pi, atol=1e-8)
    assert first.state["z"].shape == (2, 2, 1)
    assert none.state["z"].shape == (0, 2, 1)
    event = Event(lambda t, y, w: y[:, 0].sum(), terminal=False)
    joint = ti.odeint(swing, START, double(0.0, 3.0), double(1.0)[0], stepping="joint", solver=TIGHT, event=event)
    assert joint.crossings[0].time.shape == (1, 1)
    assert joint.crossings[0].state.shape == (1, 3, 2)


def test_a_non_finite_sample_stays_out():
    """It is solved beside samples with more and with fewer crossings than it has, or the healthy one in its place."""
    w = double([1.0], [2.0], [1.0]).requires_grad_()

    def field(t, y, w):
        force = torch.where(y[:, 0] < -1.9, torch.nan, -(w[:, 0] ** 2) * y[:, 0])
        return torch.stack((y[:, 1], force), 1)

    y0 = double([1.0, 0.0], [1.0, 0.0], [2.0, 0.0])
    event = Event(place, terminal=False)
    found = ti.odeint(field, y0, double(0.0, 7.0), w, solver=TIGHT, event=event, on_failure="ignore")
    assert found.status.tolist() == [0, 0, int(ti.Status.NON_FINITE)]
    assert found.crossings[0].mask.sum(0).tolist() == [2, 4, 1]
    (slope,) = torch.autograd.grad(found.crossings[0].time.nansum(), w)
    expected = [-2 * math.pi, -2 * math.pi, 0.0]
    assert slope.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_what_is_no_list_of_events():
    run = lambda event: ti.odeint(swing, START, double(0.0, 3.0), double(1.0)[0], event=event)  # noqa: E731
    with pytest.raises(ValueError, match=r"terminal=1\): expected True or False"):
        Event(place, terminal=1)
    with pytest.raises(TypeError, match=r"event\[1\]: got .*expected an instance of Event"):
        run([Event(place), place])
    with pytest.raises(TypeError, match=r"event: got \[\].*a list of them"):
        run([])
    with pytest.raises(ValueError, match=r"condition \(event\[1\]\) returned shape \(3, 2\), expected \(3,\)"):
        run([Event(place), Event(lambda t, y, w: y)])
    level = double(1.0)[0].requires_grad_()
    with pytest.raises(ti.CaptureError, match="level"):
        run([Event(place), Event(lambda t, y, w: y[:, 0] - level)])


class Threshold(torch.nn.Module):
    def __init__(self, level):
        super().__init__()
        self.level = torch.nn.Parameter(double(level)[0])

    def forward(self, t, y, w):
        return y[:, 0] - self.level

    def other(self, t, y, w):
        return y[:, 0] + self.level


def test_parameters_of_every_condition_get_their_gradients():
    one, other = Threshold(0.5), Threshold(0.25)
    events = [Event(one, terminal=False), Event(other.other, terminal=False)]
    found = ti.odeint(swing, double([1.0, 0.0]), double(0.0, 3.0), double(1.0)[0], solver=TIGHT, event=events)
    assert found.crossings[0].time.item() == pytest.approx(math.acos(0.5))
    assert found.crossings[1].time.item() == pytest.approx(math.acos(-0.25))
    sum(each.time.sum() for each in found.crossings).backward()
    assert one.level.grad.item() == pytest.approx(-1 / math.sqrt(1 - 0.25), rel=1e-6)
    assert other.level.grad.item() == pytest.approx(1 / math.sqrt(1 - 0.0625), rel=1e-6)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_event_that_nobody_meets_has_gradients_of_zero(terminal):
    threshold, w = Threshold(9.0), double(1.0)[0].requires_grad_()
    found = ti.odeint(swing, START, double(0.0, 1.0), w, event=[Event(threshold, terminal=terminal)])
    total = found.event_time.nansum() + found.crossings[0].time.sum() + found.crossings[0].state.sum()
    total.backward()
    assert w.grad == 0
    assert threshold.level.grad == 0

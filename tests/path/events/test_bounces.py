"""Chains of events: what a solve found is the value, with gradients and without, and is where the next one starts."""

import pytest
import torch

import torchimplicit as ti

D = torch.float64
TIMES = torch.tensor([0.0, 9.0], dtype=D)
KEEP = torch.tensor([1.0, -0.9], dtype=D)
METHODS = [ti.Heun, ti.Bosh3, ti.Dopri5, ti.Tsit5, ti.Dopri8, ti.Kvaerno3, ti.ESDIRK54, ti.KenCarp4]


def gravity(t, y):
    return torch.stack((y[:, 1], torch.full_like(y[:, 1], -9.81)), 1)


def resistance(t, y):
    return torch.stack((torch.zeros_like(y[:, 0]), -0.1 * y[:, 1] * y[:, 1].abs()), 1)


def drag(t, y):
    return gravity(t, y) + resistance(t, y)


def fly(solver, count, level=0.0, field=drag, **options):
    """The times of some flights one after another, `(count, B)`, and the state in the end."""
    field = ti.Split(gravity, resistance) if isinstance(solver, ti.KenCarp4) else field
    state = torch.tensor([[5.0, 0.0], [3.0, 1.0]], dtype=D, requires_grad=True)
    state, flights = state + torch.tensor([level, 0.0], dtype=D), []
    for _ in range(count):
        event = ti.Event(lambda t, y: y[:, 0] - level)
        found = ti.odeint(field, state, TIMES, solver=solver, event=event, **options)
        assert bool(found.fired.all())
        flights.append(found.event_time)
        state = found.event_state * KEEP
    return torch.stack(flights).detach(), state.detach()


@pytest.fixture(scope="module")
def exact():
    with torch.no_grad():
        return fly(ti.Dopri8(rtol=1e-12, atol=1e-12), 10)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-5])
def test_ten_bounces_of_a_ball_with_drag(method, tol, exact):
    """The flights are right to the tolerance, times what ten of them add up to."""
    flights, state = fly(method(rtol=tol, atol=tol), 10)
    with torch.no_grad():
        plain, end = fly(method(rtol=tol, atol=tol), 10)
    assert torch.equal(flights, plain)
    assert torch.equal(state, end)
    assert float((flights - exact).abs().max()) < 50 * tol


@pytest.mark.parametrize("level", [0.0, 5.0, -1e3, 1e-9])
@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.ESDIRK54()], ids=str)
def test_a_chain_starts_on_its_surface_wherever_that_is(solver, level, exact):
    with torch.no_grad():
        flights, state = fly(solver, 6, level)
    assert float((flights - exact[:6]).abs().max()) < 1e-3
    assert float((state[:, 0] - level).abs().max()) <= 2 * torch.finfo(D).eps * abs(level) + 1e-40


def test_the_gradient_of_a_chain_agrees_with_differences():
    def total(keep):
        state, time = torch.tensor([[5.0, 0.0]], dtype=D), 0.0
        for _ in range(4):
            event = ti.Event(lambda t, y: y[:, 0])
            found = ti.odeint(drag, state, TIMES, solver=ti.ESDIRK54(rtol=1e-9, atol=1e-9), event=event)
            state, time = (
                torch.stack((found.event_state[:, 0], -keep * found.event_state[:, 1]), 1),
                time + found.event_time,
            )
        return time.sum()

    keep = torch.tensor(0.8, dtype=D, requires_grad=True)
    (grad,) = torch.autograd.grad(total(keep), keep)
    with torch.no_grad():
        difference = (total(keep + 1e-4) - total(keep - 1e-4)) / 2e-4
    assert abs(float(grad / difference) - 1) < 1e-5


def test_a_ball_just_above_the_ground_falls_onto_it():
    """Nearness is no contact: an event after a billionth of a second is one."""
    for height in (1e-3, 1e-9, 1e-12):
        start = torch.tensor([[height, -1.0]], dtype=D)
        found = ti.odeint(gravity, start, TIMES, event=ti.Event(lambda t, y: y[:, 0]))
        assert abs(found.event_time.item() / height - 1) < 1e-2


@pytest.mark.parametrize("method", [*METHODS, ti.RK4, ti.Leapfrog])
def test_no_value_depends_on_the_grad_mode_nor_on_the_adjoint(method):
    field = ti.Split(gravity, resistance) if method is ti.KenCarp4 else gravity if method is ti.Leapfrog else drag
    start, ts = torch.tensor([[5.0, 0.0], [3.0, 1.0]], dtype=D), torch.linspace(0, 1, 3, dtype=D)
    solver = method(rtol=1e-3, atol=1e-4) if method in METHODS else method(dt=0.1)
    asked = torch.tensor([0.05, 0.7, 1.0], dtype=D)

    def run(adjoint):
        found = ti.odeint(field, start.requires_grad_(), ts, solver=solver, adjoint=adjoint)
        dense = ti.odeint(field, start, ts, solver=solver, adjoint=adjoint, dense=True)
        return found.value, dense.value, dense.path(asked), dense.path(0.7), dense.path.derivative(asked)

    with torch.no_grad():
        plain = run(ti.Checkpointed())
    for adjoint in (ti.Checkpointed(2), ti.Direct()):
        assert all(torch.equal(one, other) for one, other in zip(plain, run(adjoint), strict=True))
    with torch.no_grad():
        path = ti.odeint(field, start, ts, solver=solver, dense=True).path
        assert torch.allclose(path(asked)[1], path(0.7), rtol=1e-14, atol=1e-14)  # whatever else is asked for


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.ESDIRK54(), ti.RK4(dt=0.05)], ids=lambda each: type(each).__name__)
def test_samples_that_have_arrived_stay_while_the_others_bounce(solver, adjoint):
    """One bounces once, one not at all, one starts at the end: each as alone, without a step more."""
    end = torch.tensor(1.5, dtype=D)
    starts = torch.tensor([0.0, 0.0, 1.5], dtype=D)
    event = ti.Event(lambda t, y, g: y[:, 0])

    def weight(t, y, g):
        return torch.stack((y[:, 1], -g + 0 * y[:, 1]), 1)

    def run(state, starts, g):
        inputs = [each.clone().requires_grad_() for each in (state, starts, g)]
        state, start, steps, times = inputs[0], inputs[1], [], []
        for _ in range(3):
            ts = torch.stack((start, end.expand_as(start)))
            found = ti.odeint(weight, state, ts, inputs[2], solver=solver, adjoint=adjoint, event=event)
            state = torch.where(found.fired.unsqueeze(1), found.event_state * KEEP, found.event_state)
            start = torch.where(found.fired, found.event_time, end)
            steps.append(found.steps)
            times.append(start)
        total = state.sum() + torch.stack(times).sum()
        return state, torch.stack(steps), torch.stack(times), torch.autograd.grad(total, inputs)

    state, g = torch.tensor([[5.0, 0.0], [20.0, 0.0], [3.0, 1.0]], dtype=D), torch.tensor(9.81, dtype=D)
    ends, steps, times, (by_state, by_start, by_g) = run(state, starts, g)
    assert steps[1:, 1].tolist() == [0, 0]
    assert steps[:, 2].tolist() == [0, 0, 0]
    assert torch.equal(ends[2], state[2])
    assert torch.equal(by_state[2], torch.ones(2, dtype=D))
    total = 0.0
    for i in range(3):
        own, count, flights, slopes = run(state[i : i + 1], starts[i : i + 1], g)
        assert torch.equal(count[:, 0], steps[:, i])
        assert torch.allclose(own[0], ends[i], rtol=1e-12)
        assert torch.allclose(flights[:, 0], times[:, i], rtol=1e-12)
        assert torch.allclose(slopes[0][0], by_state[i], rtol=1e-9)
        assert torch.allclose(slopes[1][0], by_start[i], rtol=1e-9)
        total = total + slopes[2]
    assert torch.allclose(total, by_g, rtol=1e-9)


def test_a_chain_whose_samples_have_all_arrived_costs_no_step():
    seen, ts = [], torch.tensor([2.0, 2.0], dtype=D)
    start = torch.tensor([[5.0, 0.0], [3.0, 1.0]], dtype=D, requires_grad=True)

    def counted(t, y):
        seen.append(t)
        return drag(t, y)

    found = ti.odeint(counted, start, ts, event=ti.Event(lambda t, y: y[:, 0]), dense=True)
    assert len(seen) <= 3  # the slope, and the probe for independence
    assert torch.equal(found.value, start.expand(2, 2, 2))
    assert torch.equal(found.path(2.0), start)
    assert found.fired.tolist() == [False, False]
    assert torch.equal(torch.autograd.grad(found.event_state.sum(), start)[0], torch.ones(2, 2, dtype=D))


@pytest.mark.parametrize("ts", [[1.0], [1.0, 1.0]])
def test_one_time_is_the_start(ts):
    start, ts = torch.ones(2, 1, dtype=D, requires_grad=True), torch.tensor(ts, dtype=D, requires_grad=True)
    for options in ({}, {"dense": True}, {"event": ti.Event(lambda t, y: y[:, 0] - 0.5)}, {"adjoint": ti.Backsolve()}):
        found = ti.odeint(lambda t, y: -y, start, ts, **options)
        assert torch.equal(found.value, start.expand(len(ts), 2, 1))
        assert found.mask.tolist() == [[True] * 2, [False] * 2][: len(ts)]
        assert found.report.converged
        by_start, by_ts = torch.autograd.grad(found.value.sum(), (start, ts))
        assert torch.equal(by_start, torch.full_like(start, len(ts)))
        assert by_ts.sum() == 0  # of both together: a start at another time is the same state
    with pytest.raises(ValueError, match=r"shape \(\), expected \(T,\).*the first one that of y0"):
        ti.odeint(lambda t, y: -y, start, ts[0])

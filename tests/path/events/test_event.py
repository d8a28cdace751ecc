"""Events: where they are, what is known of them, and their gradients."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import torchimplicit as ti
from torchimplicit.ode import Event

TIGHT = ti.Tsit5(rtol=1e-10, atol=1e-12)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def fall(t, y, g):
    return torch.stack((y[:, 1], -g.expand(len(y))), 1)


def height(t, y, g):
    return y[:, 0]


def landing(y0, g):
    return (y0[:, 1] + (y0[:, 1] ** 2 + 2 * g * y0[:, 0]).sqrt()) / g


def oscillate(t, y, *args):
    return torch.stack((y[:, 1], -y[:, 0]), 1)


START = double([5.0, 0.0], [0.0, 3.0], [2.0, -1.0])
GRAVITY = double(10.0)[0]


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.Dopri5(), ti.Bosh3(), ti.RK4(dt=0.1), ti.Midpoint(dt=0.1)], ids=str)
def test_a_ball_meets_the_ground(solver):
    ts = double(0.0, 0.25, 0.9, 3.0)
    solution = ti.odeint(fall, START, ts, GRAVITY, solver=solver, event=Event(height, direction=-1))
    time = landing(START, GRAVITY)
    assert torch.allclose(solution.event_time, time, atol=1e-12)
    assert torch.allclose(solution.event_state[:, 0], torch.zeros(3).double(), atol=1e-12)
    assert torch.allclose(solution.event_state[:, 1], START[:, 1] - GRAVITY * time, atol=1e-11)
    assert torch.equal(solution.value[-1], solution.event_state)
    flying = double(0.9) < time
    free = START[:, 0] + START[:, 1] * 0.9 - GRAVITY * 0.9**2 / 2
    assert torch.allclose(solution.value[2, :, 0], torch.where(flying, free, 0.0), atol=1e-12)
    assert solution.fired.tolist() == [True] * 3
    assert torch.equal(solution.report.reached, solution.event_time)
    assert "the event of 3/3 fired" in str(solution.report)


def test_the_first_bounces_of_a_ball():
    state, now, times = double([5.0, 0.0]), 0.0, []
    for _ in range(3):  # each start on the ground is met already, up to rounding, and does not count
        flight = ti.odeint(fall, state, double(0.0, 9.0), GRAVITY, event=Event(height))
        now += flight.event_time.item()
        times.append(now)
        state = flight.event_state * double(1.0, -0.5)
    assert times == pytest.approx([1.0, 2.0, 2.5], abs=1e-10)


def test_an_event_that_never_fires_is_reported_and_no_failure():
    ts = double(0.0, 1.0)
    solution = ti.odeint(fall, double([5.0, 0.0], [50.0, 0.0]), ts, GRAVITY, event=Event(lambda t, y, g: y[:, 0] - 3))
    assert solution.fired.tolist() == [True, False]
    assert solution.report.converged
    assert solution.event_time[1].isnan()
    assert torch.equal(solution.event_state[1], solution.value[-1, 1])
    assert solution.report.reached[1] == 1.0
    assert "the event of 1/2 fired" in str(solution.report)


@pytest.mark.parametrize(("direction", "expected"), [(0, 0.5), (1, 1.5), (-1, 0.5)])
def test_direction(direction, expected):
    ts = double(0.0, 7.0)
    event = Event(lambda t, y: y[:, 0], direction)
    found = ti.odeint(oscillate, double([1.0, 0.0]), ts, solver=TIGHT, event=event)
    assert found.event_time.item() == pytest.approx(expected * torch.pi, abs=1e-8)


@pytest.mark.parametrize(("direction", "expected"), [(0, -0.5), (1, -1.5), (-1, -0.5)])
def test_direction_goes_with_the_solve_when_time_runs_backward(direction, expected):
    event = Event(lambda t, y: y[:, 0] + 0 * t.squeeze(1), direction)
    found = ti.odeint(oscillate, double([1.0, 0.0]), double(0.0, -7.0), solver=TIGHT, event=event)
    assert found.event_time.item() == pytest.approx(expected * torch.pi, abs=1e-8)


def test_a_condition_on_time_alone_and_each_samples_own_times():
    ts = torch.stack((double(0.0, 5.0), double(1.0, 8.0), double(4.0, -2.0)), 1)
    event = Event(lambda t, y: t.squeeze(1) - 2)
    found = ti.odeint(lambda t, y: -y, torch.ones(3, 1).double(), ts, solver=TIGHT, event=event)
    assert torch.allclose(found.event_time, double(2.0, 2.0, 2.0), atol=1e-14)
    assert torch.allclose(found.event_state.flatten(), torch.exp(-double(2.0, 1.0, -2.0)), rtol=1e-8)


def test_two_crossings_within_a_step_are_not_seen():
    """The limit that the documentation names."""
    event = Event(lambda t, y: (t.squeeze(1) - 0.4) * (t.squeeze(1) - 0.6))
    coarse = ti.odeint(lambda t, y: -y, torch.ones(1, 1), torch.tensor([0.0, 1.0]), solver=ti.RK4(dt=1.0), event=event)
    fine = ti.odeint(lambda t, y: -y, torch.ones(1, 1), torch.tensor([0.0, 1.0]), solver=ti.RK4(dt=0.15), event=event)
    assert coarse.fired.tolist() == [False]
    assert fine.event_time.item() == pytest.approx(0.4, abs=1e-6)


def test_joint_steps_have_one_event():
    start, ts = double([5.0, 0.0], [20.0, 0.0]), double(0.0, 9.0)
    event = Event(lambda t, y, g: y[:, 0].amin(), direction=-1)
    found = ti.odeint(fall, start, ts, GRAVITY, stepping="joint", event=event)
    assert torch.allclose(found.event_time, double(1.0))
    assert torch.allclose(found.event_state[:, 0], double(0.0, 15.0), atol=1e-10)
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(\), one number in all.*amin\(\)"):
        ti.odeint(fall, start, ts, GRAVITY, stepping="joint", event=Event(height))


@pytest.mark.parametrize("batched_args", [None, (0,)])
def test_mates_do_not_matter_nor_does_narrowing(batched_args):
    rate = torch.linspace(0.5, 50, 9000, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    start, ts = torch.ones(9000, 2, dtype=torch.float64), double(0.0, 1.0)

    def decay(t, y, rate):
        return -rate * y

    event = Event(lambda t, y, rate: y[:, 0] - 0.5)
    found = ti.odeint(decay, start, ts, rate, batched_args=batched_args, event=event, dense=True)
    exact = torch.log(double(2.0)) / rate
    fired = exact.squeeze(1) < 1
    assert torch.equal(found.fired, fired)
    assert torch.allclose(found.event_time[fired], exact[fired].squeeze(1), rtol=1e-4)
    alone = ti.odeint(decay, start[:1], ts, rate[4000:4001], event=event)
    assert torch.allclose(found.event_time[4000], alone.event_time[0], rtol=1e-12)
    assert torch.equal(found.steps[4000], alone.steps[0])
    (slope,) = torch.autograd.grad(found.event_time[fired].sum() + found.path(0.5).sum(), rate)
    expected = torch.autograd.grad(
        torch.where(fired, exact.squeeze(1), 0.0).sum() + 2 * torch.exp(-rate * 0.5)[exact >= 0.5].sum(), rate
    )[0]
    assert torch.allclose(slope, expected, rtol=2e-3, atol=1e-5)


ADJOINTS = [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("solver", [ti.RK4(dt=0.45), ti.Bosh3(control=ti.Fixed(0.13))])
def test_gradients_are_exact_for_the_steps_taken(adjoint, solver):
    """The ball against a nonlinear drag, an event with a parameter of its own, one sample without event."""
    y0, ts = double([5.0, 0.0], [1.0, 3.0], [40.0, 0.0]), double(0.0, 0.3, 2.0)
    g, level = double(10.0)[0], double(0.3)[0]

    def drag(t, y, g, level):
        return torch.stack((y[:, 1], -g - 0.1 * y[:, 1] ** 2 * torch.cos(t[:, 0])), 1)

    def surface(t, y, g, level):
        return y[:, 0] - level * torch.cos(3 * t[:, 0]) + 0.02 * y[:, 1]

    def run(y0, ts, g, level):
        event = Event(surface, direction=-1)
        found = ti.odeint(drag, y0, ts, g, level, solver=solver, adjoint=adjoint, event=event)
        assert found.fired.tolist() == [True, True, False]
        return found.event_time[:2], found.event_state, found.value

    inputs = [each.requires_grad_() for each in (y0, ts, g, level)]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
def test_second_derivatives(adjoint):
    y0, g = double([5.0, 0.3], [1.0, 3.0]), double(10.0)[0]

    def run(y0, g):
        event = Event(lambda t, y, g: torch.sin(y[:, 0]) + t[:, 0] * y[:, 1] * g / 100, direction=-1)
        found = ti.odeint(
            lambda t, y, g: fall(t, y, g) * torch.cos(y),
            y0, double(0.0, 0.1, 0.9), g, solver=ti.Midpoint(dt=0.3), adjoint=adjoint, event=event,
        )  # fmt: skip
        return found.event_time.nan_to_num(), found.event_state, found.value

    assert torch.autograd.gradgradcheck(run, [y0.requires_grad_(), g.requires_grad_()])


def test_second_derivative_of_the_time_of_fall():
    g = GRAVITY.clone().requires_grad_()

    def time(g):
        return ti.odeint(fall, START, double(0.0, 3.0), g, event=Event(height, -1)).event_time.sum()

    def exact(g):
        return landing(START, g).sum()

    for derivative in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        assert torch.allclose(derivative(time)(g), derivative(exact)(g), rtol=1e-9)


class Threshold(nn.Module):
    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(double(1.5)[0])

    def forward(self, t, y, g):
        return y[:, 0] - self.level


def test_parameters_of_the_condition_get_their_gradients():
    threshold, g = Threshold(), GRAVITY.clone().requires_grad_()
    found = ti.odeint(fall, START[:1], double(0.0, 3.0), g, event=Event(threshold))
    found.event_time.sum().backward()
    drop = START[0, 0] - 1.5
    assert threshold.level.grad.item() == pytest.approx(float(-1 / (2 * GRAVITY * drop).sqrt()), rel=1e-9)
    assert g.grad.item() == pytest.approx(float(-(drop / (2 * GRAVITY**3)).sqrt()), rel=1e-9)


def test_a_captured_tensor_in_the_condition_is_refused():
    level = double(1.0)[0].requires_grad_()
    with pytest.raises(ti.CaptureError, match="level"):
        ti.odeint(fall, START, double(0.0, 3.0), GRAVITY, event=Event(lambda t, y, g: y[:, 0] - level))
    with torch.no_grad():
        found = ti.odeint(fall, START[:1], double(0.0, 3.0), GRAVITY, event=Event(lambda t, y, g: y[:, 0] - level))
    assert found.fired.all()


def test_a_grazed_condition_has_no_gradient():
    """A condition that stands still just where the step ends."""
    event = Event(lambda t, y: (t[:, 0] - 0.5) * (t[:, 0] - 0.5).abs())

    def run(start):
        return ti.odeint(lambda t, y: -y, start, double(0.0, 1.0), solver=ti.RK4(dt=0.25), event=event)

    start = torch.ones(2, 1, dtype=torch.float64)
    assert torch.equal(run(start).event_time, double(0.5, 0.5))
    start.requires_grad_()
    with torch.no_grad():
        assert torch.equal(run(start).event_time, double(0.5, 0.5))
    with pytest.raises(ValueError, match=r"condition of sample 0 does not change along the path"):
        run(start)


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.ESDIRK54()], ids=str)
@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
def test_what_requires_no_grad_gives_none(solver, adjoint):
    """Nor does it keep a graph, and its values are those with one; each input alone makes them differentiable."""

    def run(y0, ts, g, threshold):
        event = Event(threshold)
        found = ti.odeint(fall, y0, ts, g, solver=solver, adjoint=adjoint, event=event, dense=True)
        return found.event_time, found.event_state, found.value, found.path(0.3)

    threshold = Threshold().requires_grad_(False)
    inputs = [START, double(0.0, 0.3, 3.0), GRAVITY]
    plain = run(*inputs, threshold)
    assert not any(each.requires_grad or each.grad_fn for each in plain)
    plain[0].numpy()
    for i in range(4):
        some = [each.clone().requires_grad_(i == place) for place, each in enumerate(inputs)]
        found = run(*some, threshold.requires_grad_(i == 3))
        assert all(each.requires_grad for each in found[:2])
        assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(plain, found, strict=True))


def test_forward_mode_alone_has_derivatives():
    with forward_ad.dual_level():
        g = forward_ad.make_dual(GRAVITY, torch.ones_like(GRAVITY))
        found = ti.odeint(fall, START[:1], double(0.0, 3.0), g, event=Event(height))
        slope = forward_ad.unpack_dual(found.event_time).tangent
    assert torch.allclose(slope, -((START[:1, 0] / (2 * GRAVITY**3)).sqrt()), rtol=1e-9)


def test_values_are_the_same_without_gradients_and_in_inference():
    run = lambda: ti.odeint(fall, START, double(0.0, 0.5, 3.0), GRAVITY, event=Event(height, -1))  # noqa: E731
    plain = run()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            other = run()
        assert torch.allclose(plain.value, other.value, atol=1e-14)
        assert torch.equal(plain.event_time, other.event_time)


def test_nested_and_complex_states():
    start = {"z": torch.ones(2, 1, dtype=torch.complex128), "s": torch.zeros(2, dtype=torch.float64)}
    field = lambda t, y: {"z": 1j * y["z"], "s": torch.ones_like(y["s"])}  # noqa: E731
    event = Event(lambda t, y: y["z"].real.squeeze(1))
    found = ti.odeint(field, start, double(0.0, 5.0), solver=TIGHT, event=event)
    assert torch.allclose(found.event_time, double(1.0, 1.0) * torch.pi / 2, atol=1e-8)
    assert torch.allclose(found.event_state["s"], found.event_time)
    assert torch.allclose(found.event_state["z"].imag, torch.ones(2, 1).double())


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Event(3), ValueError, r"Event\(condition=3\): expected a callable"),
        (lambda: Event(height, 2), ValueError, r"direction=2\): expected 1"),
        (lambda: Event(lambda t, y, g: y[:, 0] > 0), TypeError, r"torch.bool.*y\[:, 0\] - threshold"),
        (
            lambda: Event(lambda t, y, g: y[:, :1]),
            ValueError,
            r"shape \(3, 1\), expected \(3,\), one number per sample",
        ),
        (lambda: Event(lambda t, y, g: 1.0), TypeError, "a float, expected a real floating tensor"),
        (lambda: height, TypeError, r"event: got .*expected an instance of Event"),
    ],
)
def test_what_is_no_event(make, error, text):
    with pytest.raises(error, match=text):
        ti.odeint(fall, START, double(0.0, 3.0), GRAVITY, event=make())


def test_no_vmap():
    run = lambda g: ti.odeint(fall, START, double(0.0, 3.0), g, event=Event(height)).event_time  # noqa: E731
    with pytest.raises(RuntimeError, match="expected a batch in dimension 0"):
        torch.vmap(run)(double(9.0, 10.0))

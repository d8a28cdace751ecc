"""Samples without a finite path, or without a finite gradient, add nothing to the gradients of shared tensors."""

import math

import pytest
import torch

import torchimplicit as ti

ADJOINTS = [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()]
ROWS = [0, 2]  # the healthy ones


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


START, TIMES = double([1.0, 0.2], [0.5, 1.0], [-0.3, 0.7]), double(0.0, 0.4, 1.0)
SICK = [double(1.0, math.nan, 0.5), double(1.0, 1e300, 0.5)]  # of NaN from the start; of a blow-up at once


def swirl(t, y, w, scale):
    return torch.stack((y[:, 1] * w, -scale * w * y[:, 0] ** 3), 1)


def condition(t, y, w, scale):
    return y[:, 0] - 0.1 * scale * w


def derivatives(loss, w):
    (first,) = torch.autograd.grad(loss, w, create_graph=True)
    (plain,) = torch.autograd.grad(loss, w, retain_graph=True)
    (second,) = torch.autograd.grad(first, w, retain_graph=True)
    return torch.stack((plain, first.detach(), second))


def everything(solution, rows, t):
    loss = solution.value[:, rows].square().sum()
    if solution.event_time is not None:
        loss = loss + solution.event_time[rows].nan_to_num().sum() + solution.event_state[rows].square().sum()
    if solution.path is not None:
        loss = loss + solution.path(t)[:, rows].square().sum() + solution.path.derivative(t)[:, rows].sum()
    return loss


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("scale", SICK, ids=["nan", "blow-up"])
@pytest.mark.parametrize("what", ["event", "dense", "both"])
def test_a_non_finite_sample_stays_out_of_events_and_dense_output(adjoint, scale, what):
    t, found = double(0.3, 0.9), []
    for rows in ([0, 1, 2], ROWS):
        w = double(1.3)[0].requires_grad_()
        options = {"adjoint": adjoint, "on_failure": "ignore", "dense": what != "event"}
        event = None if what == "dense" else ti.Event(condition)
        solution = ti.odeint(swirl, START[rows], TIMES, w, scale[rows], event=event, **options)
        healthy = ROWS if len(rows) == 3 else slice(None)
        found.append(derivatives(everything(solution, healthy, t), w))
        if len(rows) == 3:
            assert solution.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
            (nothing,) = torch.autograd.grad(everything(solution, [1], t), w)
            assert nothing == 0
            assert torch.equal(solution.value[:, 1], START[1].expand(3, 2))
    assert torch.allclose(*found, rtol=1e-12, atol=1e-13)


def test_a_non_finite_sample_of_many_directions_and_times_is_held_on_its_path():
    def field(t, y, w, scale):
        return torch.where(t.abs() > 0.505, scale.unsqueeze(1), 1.0) * w * y

    w, scale = double(-1.0)[0].requires_grad_(), double(1.0, math.inf, 1.0)
    ts = torch.stack((double(0.0, 1.0), double(0.0, -1.0), double(0.0, 0.1)), 1)
    solution = ti.odeint(field, START[:, :1], ts, w, scale, dense=True, on_failure="ignore")
    assert solution.path is not None
    assert solution.path.reached[1] == pytest.approx(-0.505, abs=1e-3)
    at = torch.stack((double(0.5, 1.0), double(-0.5, -1.0), double(0.05, 0.1)), 1)
    path = solution.path(at)
    assert torch.allclose(path[0, :, 0], START[:, 0] * torch.exp(-at[0]), rtol=1e-4)
    assert torch.equal(path[1, 1], solution.value[1, 1])
    path.sum().backward()
    expected = (START[:, 0] * at * torch.exp(-at))[:, ROWS].sum()
    assert w.grad.item() == pytest.approx(float(expected), rel=1e-4)


def test_nobody_is_healthy():
    w = double(1.0)[0].requires_grad_()
    bad = double(math.nan, math.nan)
    event = ti.Event(condition)
    solution = ti.odeint(swirl, START[:2], TIMES, w, bad, event=event, dense=True, on_failure="ignore")
    loss = everything(solution, slice(None), TIMES)
    assert loss.isfinite()
    assert all(each.requires_grad for each in (solution.value, solution.event_state, solution.path(0.5)))
    (grad,) = torch.autograd.grad(loss, w)
    assert grad == 0


@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
def test_a_condition_that_is_not_finite_stays_out_too(adjoint):
    """Nobody can say whether such a sample has met its event: it has failed, though it reached the last time."""

    def threshold(t, y, w, level):
        return y[:, 0] - level * w

    found = []
    for rows in ([0, 1, 2], ROWS):
        w, level = double(1.0)[0].requires_grad_(), double(0.8, math.nan, -0.5)[rows]
        event = ti.Event(threshold)
        options = {"adjoint": adjoint, "event": event, "on_failure": "ignore"}
        solution = ti.odeint(lambda t, y, w, level: -w * y, START[rows, :1], TIMES, w, level, **options)
        healthy = ROWS if len(rows) == 3 else slice(None)
        found.append(derivatives(everything(solution, healthy, None), w))
        if len(rows) == 3:
            assert solution.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
            assert solution.report.reached.max() == 1.0
            assert "the event's condition" in solution.report.remedies[ti.Status.NON_FINITE]
    assert torch.allclose(*found, rtol=1e-12)


OPTIONS = [{"adjoint": each} for each in (*ADJOINTS, ti.Backsolve(), ti.Reversible())] + [{"solver": ti.ESDIRK54()}]
OPTIONS += [{"dense": True}, {"event": ti.Event(lambda t, y, w, x: y[:, 0] - 0.3)}]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_a_non_finite_sample_that_cannot_be_kept_apart_is_said(options):
    """The batch is the second dimension of `x`, where no sample's row is found: NaN gets into the shared gradient."""

    def field(t, y, w, x):
        return w * torch.tanh(y + x.T)

    w, x = double(1.3)[0].requires_grad_(), double([1.0, math.nan, 0.3], [0.4, 0.1, -0.2])
    with pytest.warns(ti.ConvergenceWarning, match="could not be kept apart"):
        solution = ti.odeint(field, torch.zeros(3, 2).double(), TIMES, w, x, on_failure="ignore", **options)
    assert solution.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
    with pytest.warns(ti.ConvergenceWarning, match="could not be kept apart"):  # and no finite number is given for it
        (found,) = torch.autograd.grad(solution.value[:, ROWS].sum(), w)
    assert found.isnan()
    assert solution.backward is None or (solution.backward.status[ROWS] != ti.Status.NON_FINITE).all()


BLOW_UP, LATER = double([0.1, 0.2], [0.5, 2.0], [0.3, 0.3]), double(0.0, 0.2, 0.4, 0.8)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
@pytest.mark.parametrize("what", ["plain", "dense", "event"])
def test_a_blow_up_under_a_stiff_solver_leaves_second_derivatives_alone(adjoint, what):
    """The last implicit steps before it, made again to rounding, have no solution."""
    found = []
    for rows in ([0, 1, 2], ROWS):
        w = double(1.0)[0].requires_grad_()
        event = ti.Event(lambda t, y, w: y[:, 0] - 0.32) if what == "event" else None
        solution = ti.odeint(
            lambda t, y, w: w * y**2, BLOW_UP[rows], LATER, w,
            solver=ti.ESDIRK54(), adjoint=adjoint, on_failure="ignore", event=event, dense=what == "dense",
        )  # fmt: skip
        if len(rows) == 3:
            assert solution.status.tolist() == [0, int(ti.Status.STEP_TOO_SMALL), 0]
            assert solution.value.isfinite().all()
        found.append(derivatives(everything(solution, ROWS if len(rows) == 3 else slice(None), double(0.1, 0.7)), w))
    assert torch.allclose(*found, rtol=1e-12)


def test_a_sample_whose_steps_are_not_found_again_gets_no_gradient():
    """Its last stages before the blow-up have no solution to rounding, though they had one to their tolerance."""
    found, solver = [], ti.Kvaerno3(rtol=1e-2, atol=1e-2)
    for rows in ([0, 1, 2], [0, 2]):
        w = double(1.0)[0].requires_grad_()
        start = double([0.1], [2.0], [0.3])[rows]
        solution = ti.odeint(lambda t, y, w: w * y**3, start, LATER, w, solver=solver, on_failure="ignore")
        found += torch.autograd.grad(solution.value[1:].square().sum(), w)
    assert torch.allclose(*found, rtol=1e-9)


def test_a_sample_whose_steps_became_too_small_keeps_its_gradient_under_an_explicit_solver():
    w = double(1.0)[0].requires_grad_()
    solution = ti.odeint(lambda t, y, w: w * y**2, BLOW_UP[:2], LATER, w, solver=ti.Tsit5(), on_failure="ignore")
    assert solution.status.tolist() == [0, int(ti.Status.STEP_TOO_SMALL)]
    (grad,) = torch.autograd.grad(solution.value[1, 1].sum(), w)  # an output before the blow-up, y / (1 - w t y)
    assert grad.item() == pytest.approx(float((0.2 * BLOW_UP[1] ** 2 / (1 - 0.2 * BLOW_UP[1]) ** 2).sum()), rel=1e-3)


@pytest.mark.parametrize(
    "solver",
    [ti.Euler(dt=0.1), ti.Euler(), ti.Midpoint(dt=0.1), ti.RK4(dt=0.1), ti.Leapfrog(dt=0.1), ti.Suzuki4(dt=0.1)],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"dense": True}, {"adjoint": ti.Backsolve()}], ids=str)
@pytest.mark.parametrize("since", [-1.0, 0.45])
def test_fixed_steps_that_meet_nan(solver, options, since):
    """There is no smaller step to try: the sample stops before the step, and the others are as without it."""
    if "adjoint" in options and hasattr(solver, "substeps"):
        with pytest.raises(ValueError, match=r"got a symplectic backward solve.*Backsolve\(solver=RK4"):
            ti.odeint(lambda t, y: -y, START, TIMES, solver=solver, **options)
        options = {"adjoint": ti.Backsolve(solver=ti.RK4(dt=0.1))}

    def field(t, y, w, invalid):
        return torch.stack((y[:, 1], -y[:, 0]), 1) * w * torch.where(t > since, invalid.unsqueeze(1), 1.0)

    found = []
    for rows in ([0, 1, 2], ROWS):
        w, invalid = double(1.0)[0].requires_grad_(), double(1.0, math.nan, 1.0)[rows]
        times = double(0.0, 0.5, 1.0)
        solution = ti.odeint(field, START[rows], times, w, invalid, solver=solver, on_failure="ignore", **options)
        if len(rows) == 3:
            assert solution.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
            assert solution.value.isfinite().all()
            assert 0 <= solution.report.reached[1] <= max(0, since) + 0.06
        value = solution.value[:, ROWS if len(rows) == 3 else slice(None)]
        found.append((value, torch.autograd.grad(solution.value[:, 1 if len(rows) == 3 else slice(0)].sum()
                                                  + value.square().sum(), w)[0]))  # fmt: skip
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-12)


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_a_shared_tensor_as_long_as_the_batch_keeps_its_gradient(bias):
    x = torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3)
    weight = 0.3 * x.flip(1)

    def gradient(x):
        shared = torch.full((3,), bias, dtype=torch.float64, requires_grad=True)
        solution = ti.odeint(
            lambda t, y, x, weight, shared: torch.tanh(y @ weight + x + shared), torch.zeros_like(x),
            torch.linspace(0, 1, 3, dtype=torch.float64), x, weight, shared, on_failure="ignore",
        )  # fmt: skip
        solution.value[-1, :2].square().sum().backward()
        return shared.grad

    invalid = x.clone()
    invalid[2, 1] = torch.nan
    state = torch.random.get_rng_state()
    assert torch.allclose(gradient(invalid), gradient(x), rtol=1e-10)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_coupled_samples_are_refused_or_reported_and_the_remedies_help():
    turn = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    y0, ts = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.linspace(0, 5, 3, dtype=torch.float64)

    def spiral(t, y):
        return y**3 @ turn

    with pytest.raises(ValueError, match=r"shape \(2,\).*y0\[None\].*stepping=\"joint\""):
        ti.odeint(spiral, y0, ts)
    one, joint = ti.odeint(spiral, y0[None], ts), ti.odeint(spiral, y0, ts, stepping="joint")
    assert torch.allclose(one.value[:, 0], joint.value, atol=1e-3)

    def centred(t, y):
        return y.mean(0) - 3 * y

    y0 = torch.linspace(-1, 2, 6, dtype=torch.float64).view(3, 2)
    found = ti.odeint(centred, y0, ts, on_failure="ignore")
    assert found.status.tolist() == [ti.Status.COUPLED] * 3
    assert "joint" in found.report.remedies[ti.Status.COUPLED]
    with pytest.raises(ti.ConvergenceError, match="coupled"):
        ti.odeint(centred, y0, ts)
    assert ti.odeint(centred, y0, ts, stepping="joint").report.converged
    decay = ti.odeint(lambda t, y: -t * y, torch.ones(7, dtype=torch.float64), ts)
    assert decay.report.converged

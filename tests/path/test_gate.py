"""Samples whose incoming gradient, or whose Jacobian, is not finite add nothing to what all samples share."""

import math

import pytest
import torch

import torchimplicit as ti

EXACT = [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()]
ADJOINTS = [*EXACT, ti.Backsolve(), ti.Reversible()]
HEALTHY = [0, 2]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


START, TIMES = double([1.0, 0.2], [0.5, 1.0], [0.3, 0.7]), double(0.0, 0.4, 1.0)


def swirl(t, y, w, scale):
    return torch.stack((y[:, 1] * w, -scale * w * y[:, 0] ** 3), 1)


def leaves(rows):
    return START[rows].clone().requires_grad_(), double(1.3)[0].requires_grad_(), double(1.0, 2.0, 0.5)[rows]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_an_incoming_gradient_that_is_not_finite_is_stopped(adjoint, bad):
    y0, w, scale = leaves(HEALTHY)
    solution = ti.odeint(swirl, y0, TIMES, w, scale, adjoint=adjoint)
    expected = torch.autograd.grad(solution.value.square().sum(), (y0, w))
    y0, w, scale = leaves([0, 1, 2])
    solution = ti.odeint(swirl, y0, TIMES, w, scale, adjoint=adjoint, on_failure="warn")
    grad = 2 * solution.value.detach()
    grad[1, 1, 0] = bad
    with pytest.warns(ti.ConvergenceWarning, match="non_finite: sample 1 .*\n.*incoming gradient"):
        by_start, by_weight = torch.autograd.grad(solution.value, (y0, w), grad, retain_graph=True)
    assert solution.backward.status.tolist() == [0, ti.Status.NON_FINITE, 0]
    assert torch.allclose(by_weight, expected[1], rtol=1e-12)
    assert torch.allclose(by_start[HEALTHY], expected[0], rtol=1e-12)
    assert torch.equal(by_start[1], torch.zeros(2))
    torch.autograd.grad(solution.value.sum(), w)  # a pass that is well says so
    assert solution.backward is None or solution.backward.converged


def test_the_failure_is_raised_by_default_and_nothing_is_left_of_it():
    y0, w, scale = leaves([0, 1, 2])
    solution = ti.odeint(swirl, y0, TIMES, w, scale)
    factor = double(1.0, math.nan, 1.0)[:, None]
    with pytest.raises(ti.ConvergenceError, match="backward solve: 1 of 3 samples cannot trust their gradient"):
        torch.autograd.grad((factor * solution.value).sum(), w, retain_graph=True)
    (found,) = torch.autograd.grad(solution.value.sum(), w)
    assert found.isfinite()


@pytest.mark.parametrize("adjoint", EXACT, ids=str)
def test_what_is_given_away_of_a_path_is_watched_everywhere(adjoint):
    def solve(rows):
        y0, w, scale = leaves(rows)
        event = ti.Event(lambda t, y, w, scale: y[:, 0] - 0.5 * y[:, 1] - 0.1 * w)
        options = {"adjoint": adjoint, "on_failure": "ignore"}
        return ti.odeint(swirl, y0, TIMES, w, scale, event=event, dense=True, **options), w

    def losses(solution, factor):
        parts = [solution.event_time * factor, (solution.event_state * factor[:, None]).sum(1)]
        parts += [(solution.path(t).square() * factor[:, None]).sum(-1) for t in (0.3, double(0.2, 0.35))]
        parts += [(solution.path.derivative(double(0.2)) * factor[:, None]).sum(-1)]
        return [part.nan_to_num(0.0).sum() if factor.isfinite().all() else part.sum() for part in parts]

    (well, by_well), (invalid, by_invalid) = solve(HEALTHY), solve([0, 1, 2])
    for some, all_ in zip(losses(well, double(1.0, 1.0)), losses(invalid, double(1.0, math.nan, 1.0)), strict=True):
        expected = torch.autograd.grad(some, by_well, retain_graph=True)[0]
        found = torch.autograd.grad(all_, by_invalid, retain_graph=True)[0]
        assert invalid.backward.status[1] == ti.Status.NON_FINITE
        assert torch.allclose(found, expected, rtol=1e-10)


def infinite_slope(t, y, w, x):
    """At a state of zero, where the second sample starts and stays, the root's derivative is infinite."""
    return -w * x * y.abs().sqrt()


ORDERS = [(each, 1) for each in (*ADJOINTS, ti.Backsolve(seminorm=False))]
ORDERS += [(each, 2) for each in (*EXACT, ti.Reversible())]


@pytest.mark.parametrize("which", ["all", "others"])
@pytest.mark.parametrize(("adjoint", "order"), ORDERS, ids=str)
def test_a_jacobian_that_is_not_finite_reaches_no_shared_gradient(adjoint, order, which):
    def gradients(rows, factor):
        y0 = START[rows] * (double(1.0, 0.0, 1.0)[rows])[:, None]
        w, x = double(0.3)[0].requires_grad_(), START[rows].requires_grad_()
        solution = ti.odeint(infinite_slope, y0, TIMES, w, x, adjoint=adjoint, on_failure="ignore")
        loss = (solution.value.square() * factor[rows][:, None]).sum()
        found = torch.autograd.grad(loss, (w, x), create_graph=order == 2)
        return found if order == 1 else torch.autograd.grad(found[0], (w, x)), solution

    factor = double(1.0, 1.0 if which == "all" else 0.0, 1.0)
    expected, _ = gradients(HEALTHY, factor)
    (by_weight, by_input), solution = gradients([0, 1, 2], factor)
    assert solution.status.tolist() == [0, 0, 0]
    assert torch.allclose(by_weight, expected[0], rtol=1e-8)
    assert torch.allclose(by_input[HEALTHY], expected[1], rtol=1e-8)
    assert torch.equal(by_input[1], torch.zeros(2))
    assert solution.backward.status[1] != ti.Status.CONVERGED


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct(), ti.Backsolve()], ids=str)
def test_a_slope_by_a_parameter_that_is_infinite_is_found_by_halving(adjoint):
    """The state's Jacobian is finite, and the start wants no gradient: nothing but the shared one shows the sample."""
    x = double(1.0, 2.0, 0.0, 3.0, 0.5)[:, None]
    w = double(0.5)[0].requires_grad_()
    solution = ti.odeint(
        lambda t, y, x, w: torch.sqrt(w * x) - 0 * y, torch.zeros_like(x), TIMES, x, w, adjoint=adjoint,
        on_failure="ignore",
    )  # fmt: skip
    solution.value[-1].sum().backward()
    assert torch.allclose(w.grad, x.sqrt().sum() / (2 * 0.5**0.5))
    assert torch.nonzero(solution.backward.status == ti.Status.NON_FINITE).flatten().tolist() == [2]


def test_samples_that_the_forward_pass_keeps_out_are_none_of_the_backward_pass():
    y0 = double([1.0], [0.0], [0.5], [0.3])
    w, x = double(0.3)[0].requires_grad_(), double(1.0, 1.0, math.nan, 2.0)[:, None]
    solution = ti.odeint(infinite_slope, y0, TIMES, w, x, on_failure="ignore")
    (found,) = torch.autograd.grad(solution.value.sum(), w)
    well = ti.odeint(infinite_slope, y0[[0, 3]], TIMES, w, x[[0, 3]])
    assert torch.allclose(found, torch.autograd.grad(well.value.sum(), w)[0], rtol=1e-10)
    assert solution.status.tolist() == [0, 0, ti.Status.NON_FINITE, 0]
    assert solution.backward.status[:2].tolist() == [0, ti.Status.NON_FINITE]


@pytest.mark.parametrize(
    "options",
    [{"dense": True}, {"event": ti.Event(lambda t, y, w, x: y[:, 0] - 0.9)}],
    ids=lambda options: str(*options),
)
def test_what_cannot_be_kept_apart_is_said(options):
    w, y0 = double(0.3)[0].requires_grad_(), double([1.0], [0.0])
    solution = ti.odeint(infinite_slope, y0, TIMES, w, double([1.0], [1.0]), **options)
    with pytest.warns(ti.ConvergenceWarning, match="could not be kept apart"):
        solution.value.sum().backward()


def half_root(w, x):
    """Its first derivative by `w` is finite where `x` is zero, the second is not."""
    return (w * x) ** 1.5


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
def test_second_derivatives_that_alone_are_not_finite_are_said(adjoint):
    w, x = double(0.3)[0].requires_grad_(), double([1.0], [0.0])
    solution = ti.odeint(lambda t, y, w, x: half_root(w, x) - y, x, TIMES, w, x, adjoint=adjoint)
    (first,) = torch.autograd.grad(solution.value.sum(), w, create_graph=True)
    assert first.isfinite()
    with pytest.warns(ti.ConvergenceWarning, match="could not be kept apart"):
        torch.autograd.grad(first, w)


def test_gradients_in_a_batch_and_tangents_pass():
    """Nobody can look at them one by one."""
    y0, w, scale = leaves([0, 1, 2])
    value = ti.odeint(swirl, y0, TIMES, w, scale).value
    several = torch.eye(2, dtype=torch.float64)[:, None, None].expand(2, 3, 3, 2)
    found = torch.vmap(lambda grad: torch.autograd.grad(value, y0, grad, retain_graph=True)[0])(several)
    assert torch.allclose(found[1], torch.autograd.grad(value, y0, several[1])[0], rtol=1e-12)

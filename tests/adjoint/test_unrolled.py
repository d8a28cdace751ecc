"""Backpropagation through the steps: what stopped samples must not do to the others."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti

SOLVERS = [ti.Picard(max_steps=400), ti.Anderson(max_steps=400), ti.Broyden(max_steps=400)]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_sample_that_overflows_after_it_has_stopped_reaches_no_gradient(solver, checkpoint):
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0], [7.0]], dtype=torch.float64)

    def f(z, weight, x):
        return torch.where(x > 1, 3 * z + weight * z**2 + 1, 0.97 * z + weight)

    solution = ti.fixed_point(
        f, torch.zeros_like(x), weight, x, solver=solver, adjoint=ti.Unrolled(checkpoint), on_failure="ignore"
    )
    assert solution.status[0] == ti.Status.CONVERGED
    (grad,) = torch.autograd.grad(solution.value[0].sum(), weight)
    assert abs(float(grad) - 1 / 0.03) < 0.2


def test_newton_goes_on_beside_a_sample_that_has_arrived():
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[0.0], [3.0]], dtype=torch.float64)  # the first starts at a root where the slope is zero
    solution = ti.root(lambda z, w: w * z**2 * (z - 2), start, weight, adjoint=ti.Unrolled(), on_failure="ignore")
    assert solution.report.converged
    (grad,) = torch.autograd.grad(solution.value.sum(), weight)
    assert abs(float(grad)) < 1e-8
    assert solution.backward.status.tolist() == [ti.Status.MAX_STEPS, ti.Status.CONVERGED], "a singular root has none"


EVERY = [
    ti.Picard(),
    ti.Anderson(),
    ti.Anderson(window=5, period=1, ridge=1e-5),
    ti.Broyden(),
    ti.Newton(linear_solver=ti.LU()),
]


@pytest.mark.parametrize("solver", EVERY, ids=str)
@pytest.mark.parametrize("start", [0.0, 1e-7, 1e-3, 1.0], ids="start {}".format)
def test_a_start_at_or_near_the_solution_loses_no_gradient(solver, start):
    theta = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([[start], [1.0]], dtype=torch.float64)
    solution = ti.fixed_point(lambda z, t: 0.5 * z + t, z0, theta, solver=solver, adjoint=ti.Unrolled())
    solution.value.sum().backward()
    assert torch.allclose(theta.grad, torch.full_like(theta, 2.0), rtol=1e-3)
    assert solution.backward.converged
    assert (solution.backward.residual < 1e-3).all()


@settings(max_examples=20)
@given(st.floats(-30, 3))
def test_what_lends_its_gradient_leaves_the_value_as_it_is(power):
    """Steps from aside may be larger than the value by any factor, and their rounding with them."""
    start = torch.full((2, 3), 10**power, dtype=torch.float64)
    tilt, steps = torch.zeros(3, dtype=torch.float64, requires_grad=True), ti.Picard(rtol=1e-3)
    found = []
    for needs in (True, False):
        with torch.set_grad_enabled(needs):
            by = lambda z, t: 0.5 * torch.tanh(z) + t  # noqa: E731
            found.append(ti.fixed_point(by, start, tilt, solver=steps, adjoint=ti.Unrolled()).value)
    assert torch.equal(*found)


def test_a_solve_that_takes_no_steps_at_all_has_a_gradient():
    theta = torch.zeros(3, 1, requires_grad=True)
    solution = ti.fixed_point(
        lambda z, t: 0.5 * z + t, torch.zeros(3, 1), theta, solver=ti.Picard(), adjoint=ti.Unrolled()
    )
    assert solution.steps.tolist() == [0, 0, 0]
    solution.value.sum().backward()
    assert torch.allclose(theta.grad, torch.full_like(theta, 2.0), rtol=1e-3)


@pytest.mark.parametrize("of_the_start", [False, True])
def test_no_steps_from_anywhere_near_are_said_to_give_no_gradient(of_the_start):
    """A start that is loose enough to count as the solution, and so is all that lies aside of it."""
    weight, x = (torch.full((1, 1), value, dtype=torch.float64) for value in (0.5, 1.0))
    z0 = torch.full((1, 1), 2.01, dtype=torch.float64, requires_grad=of_the_start)
    solution = ti.fixed_point(
        lambda z, w, x: z @ w + x, z0, weight.requires_grad_(), x, solver=ti.Picard(rtol=0.1), adjoint=ti.Unrolled()
    )
    assert solution.report.steps.tolist() == [0]
    with pytest.raises(ti.ConvergenceError, match=r"has not come to that of the solution.*Implicit\(\)"):
        solution.value.sum().backward()


@pytest.mark.parametrize("solver", EVERY, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e-8, 1e-4, 1e-2, 0.3, 3.0])
def test_the_gradient_agrees_with_implicit_or_the_report_says_by_how_much_it_may_not(solver, offset):
    z0 = 0.7390851332151607 + offset * torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)

    def gradient(adjoint):
        theta = torch.zeros_like(z0).requires_grad_()
        solution = ti.fixed_point(
            lambda z, t: torch.cos(z) + t, z0, theta, solver=solver, adjoint=adjoint, on_failure="ignore"
        )
        (grad,) = torch.autograd.grad(solution.value.sum(), theta)
        return grad[:, 0], solution.backward

    unrolled, report = gradient(ti.Unrolled())
    exact, _ = gradient(ti.Implicit(ti.LU()))
    off = (unrolled - exact).abs() / exact.abs()
    assert (off <= 3 * report.residual + 1e-3).all(), "a residual is relative to an incoming gradient of one here"
    assert ((report.status == ti.Status.CONVERGED) == (report.residual <= 1e-2)).all()


@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_steps_that_jump_to_a_solution_do_not_pass_for_its_gradient_by_the_weights(solver):
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    weight = (0.5 * torch.eye(2, dtype=torch.float64)).requires_grad_()  # two secant steps solve this one exactly,
    solution = ti.fixed_point(
        lambda z, w: z @ w + x, torch.zeros_like(x), weight, solver=solver, adjoint=ti.Unrolled(), on_failure="ignore"
    )
    (grad,) = torch.autograd.grad(solution.value.sum(), weight)  # but not those beside it: z outer (I - W)^-T 1
    right = torch.tensor([[4.0, 4.0], [8.0, 8.0]], dtype=torch.float64)
    assert solution.report.converged
    assert float((grad - right).norm() / right.norm()) <= 3 * float(solution.backward.residual) + 1e-3
    assert solution.backward.converged == (float(solution.backward.residual) <= 1e-2)
    if isinstance(solver, ti.Broyden):
        assert abs(float((grad - right).norm() / right.norm()) - 0.158) < 1e-3
        assert solution.backward.status.tolist() == [ti.Status.MAX_STEPS]


@settings(max_examples=40)
@given(
    solver=st.sampled_from([ti.Picard, ti.Anderson, ti.Broyden]),
    rtol=st.sampled_from([1e-1, 1e-2, 1e-4, 1e-8]),
    linear=st.booleans(),
    batch=st.integers(1, 3),
    width=st.integers(1, 4),
    far=st.sampled_from([0.0, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_a_gradient_by_the_weights_that_has_converged_is_right(solver, rtol, linear, batch, width, far, seed):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))[0]
    weight = (0.5 * weight).requires_grad_()
    x, start, cotangent = (torch.randn(batch, width, generator=draw, dtype=torch.float64) for _ in range(3))

    def f(z, weight, x):
        return z @ weight + x if linear else torch.tanh(z @ weight + x)

    options = {"solver": solver(rtol=rtol), "adjoint": ti.Unrolled(), "on_failure": "ignore"}
    solution = ti.fixed_point(f, far * start, weight, x, **options)
    (got,) = torch.autograd.grad((solution.value * cotangent).sum(), weight)
    if not solution.backward.converged:
        return
    z = solution.value.detach()
    slopes = torch.ones_like(z) if linear else 1 - f(z, weight, x).detach() ** 2  # of f by its argument
    expected, size = torch.zeros_like(got), 0.0
    for b in range(batch):
        jacobian = weight.detach() * slopes[b]  # of z @ W, transposed
        u = slopes[b] * torch.linalg.solve(torch.eye(width, dtype=z.dtype) - jacobian, cotangent[b])
        expected, size = expected + torch.outer(z[b], u), size + float(z[b].norm() * cotangent[b].norm())
    assert float((got - expected).norm()) <= 0.1 * size


def test_a_start_whose_rounding_is_larger_than_the_gradient_is_said():
    def solve(far, adjoint):
        weight = torch.tensor([[0.3]], requires_grad=True)  # float32
        x, start = torch.full((2, 1), 1e-18), torch.tensor([[far], [-far]])
        solution = ti.fixed_point(
            lambda z, w, x: z @ w + x, start, weight, x, solver=ti.Newton(linear_solver=ti.LU(), atol=0.0),
            adjoint=adjoint, on_failure="ignore",
        )  # fmt: skip
        (grad,) = torch.autograd.grad(solution.value.sum(), weight)
        return abs(float(grad) / (2e-18 / 0.7**2) - 1), solution.backward

    off, report = solve(1.0, ti.Unrolled())
    assert off <= 0.1 or not report.converged
    for off, report in (solve(1e-18, ti.Unrolled()), solve(1.0, ti.Implicit())):
        assert off < 1e-2
        assert report.converged


def test_gradients_that_cancel_are_no_error():
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x, start = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    solution = ti.fixed_point(
        lambda z, w, x: w * torch.tanh(z) + x, start, weight, x, solver=ti.Picard(rtol=1e-5), adjoint=ti.Unrolled()
    )
    (grad,) = torch.autograd.grad(solution.value.sum(), weight)
    assert 0 < abs(float(grad)) < 1e-3, "the samples' are opposite, but for what the steps have left"
    assert solution.backward.converged


def test_what_steps_from_aside_give_where_the_solution_is_zero_is_said():
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(2, 3, dtype=torch.float64)
    solution = ti.fixed_point(
        lambda z, w: w * z, start, weight, solver=ti.Picard(), adjoint=ti.Unrolled(), on_failure="ignore"
    )
    (grad,) = torch.autograd.grad(solution.value.sum(), weight)
    assert float(grad) == 0 or not solution.backward.converged


@pytest.mark.parametrize("adjoint", [ti.Unrolled(), ti.Unrolled(True), ti.Phantom(3)], ids=str)
@pytest.mark.parametrize("passes", ["none", "one", "two", "differentiated", "by the start"])
def test_nothing_is_kept_alive(adjoint, passes):
    def solve():
        weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        start = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
        value = ti.fixed_point(
            lambda z, w: torch.tanh(w * z + 1), start, weight, adjoint=adjoint, on_failure="ignore"
        ).value.sum()
        if passes in ("one", "two"):
            torch.autograd.grad(value, weight, retain_graph=passes == "two")
        if passes == "two":
            torch.autograd.grad(value, weight)
        if passes == "differentiated":
            torch.autograd.grad(value, weight, create_graph=True)
        if passes == "by the start":
            torch.autograd.grad(value, start, allow_unused=True)
        return weakref.ref(weight)

    alive = solve()
    gc.collect()
    assert alive() is None


def test_too_few_steps_are_reported_and_the_remedy_helps():
    def solve(solver, adjoint):
        theta = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        solution = ti.fixed_point(
            lambda z, t: 0.9 * z + t, torch.zeros(1, 1).double(), theta, solver=solver, adjoint=adjoint,
            on_failure="ignore",
        )  # fmt: skip
        solution.value.sum().backward()
        return solution, float(theta.grad)

    short, grad = solve(ti.Picard(max_steps=5), ti.Unrolled())
    assert short.backward.status.tolist() == [ti.Status.MAX_STEPS]
    assert abs(grad - 10) / 10 == pytest.approx(float(short.backward.residual), rel=1e-6), "it says by how much"
    assert "Implicit()" in short.backward.remedies[ti.Status.MAX_STEPS]
    for solver, adjoint in ((ti.Picard(rtol=1e-6, max_steps=300), ti.Unrolled()), (ti.Picard(), ti.Implicit())):
        cured, grad = solve(solver, adjoint)
        assert cured.backward.converged
        assert abs(grad - 10) < 1e-2


@pytest.mark.parametrize("adjoint", [ti.Phantom(), ti.Phantom(steps=3), ti.Unrolled(), ti.Unrolled(True)], ids=str)
@pytest.mark.parametrize("what", ["jacobian", "zero cotangent", "cotangent"])
def test_what_is_not_finite_reaches_no_shared_gradient(adjoint, what):
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    factors = torch.tensor([[1.0], [1.0 if what == "jacobian" else 0.0]], dtype=torch.float64)
    if what == "cotangent":
        x[1], factors[1] = 1.0, torch.nan

    def f(z, x, w):  # at z = 0 the root's derivative is infinite
        return w * x + 0.1 * x.sign() * (z * z).sum(1, keepdim=True).sqrt()

    def gradient(x, factors):
        w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        solution = ti.fixed_point(
            f, torch.zeros_like(x), x, w, solver=ti.Picard(rtol=1e-8), adjoint=adjoint, on_failure="ignore"
        )
        (solution.value * factors).sum().backward()
        return w.grad, solution.backward

    alone, _ = gradient(x[:1], factors[:1])
    both, report = gradient(x, factors)
    assert torch.allclose(both, alone, rtol=1e-10)
    if adjoint != ti.Phantom() or what == "cotangent":  # whose one step asks for no derivative by the state
        assert report.status.tolist() == [ti.Status.CONVERGED, ti.Status.NON_FINITE]

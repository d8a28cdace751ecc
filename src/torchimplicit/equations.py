"""The public functions of nonlinear equations: what to solve, by which solver, differentiated by which adjoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Adjoint, Implicit, PointCall, attached, find_nonfinite, quarantine, unmoved
from torchimplicit.adjoint.implicit import ImplicitSolve
from torchimplicit.core import transforms
from torchimplicit.core.compiled.worth import Compile, spend
from torchimplicit.core.problem import FixedPoint, Problem, Residual, Root
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure, Report, Solution, react
from torchimplicit.core.tree import own
from torchimplicit.linear import GMRES, LU
from torchimplicit.point import Options, check_options
from torchimplicit.solve import DENSE, Anderson, Newton, PreparedMap, Result, Solver, iterate
from torchimplicit.solve.compiled.engine import Ahead, check_compile, choose_ahead


@public
@transforms.outside_inference_mode
def fixed_point(
    f: Callable,
    z0: Any,
    *args: Any,
    solver: Solver = Anderson(),
    adjoint: Adjoint = Implicit(),
    batch_dims: int = 1,
    warm_start: Solution | None = None,
    trace: bool = False,
    batched_args: Sequence[int] | None = None,
    save_steps: Sequence[int] = (),
    compile: Compile = False,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Solves $f(z, a) = z$ for $z$, sample by sample, differentiably in the arguments $a$.

    Every tensor that shall get a gradient must be an argument, or a parameter of `f` when `f` is an `nn.Module` or a
    bound method of one; a captured one is refused. A sample has converged when `rms(f(z) - z) <= atol + rtol * rms(z)`.

    Args:
        f: `f(z, *args) -> z`, structure, shapes and dtype as `z`; samples independent (no batch normalisation).
        z0: start: a floating or complex tensor `(B, ...)` or a nest of such. Gets no gradient (but with `Unrolled`).
        *args: further arguments of `f`, nested; tensors and modules among them are differentiated.
        solver: `Anderson()`, `Picard()`, `Newton()`, ... with its tolerances.
        adjoint: `Implicit()`, `Unrolled()`, `Phantom()`, ...
        batch_dims: 1 when dimension 0 of every leaf of `z0` is the batch; 0 for one coupled problem.
        warm_start: an earlier solution of the same shapes to start from in place of `z0`.
        trace: keep the residuals of every step in `solution.trace`.
        batched_args: positions of those `args` that carry the batch in dimension 0, `(0,)` for `fixed_point(f, z0, x)`,
            the others being the same for every sample. Lets the solve go on without the samples that have arrived, once
            half of a large batch has; None never does. Values stay the same but for rounding. A module there says by a
            method `take(rows)` what it is for some of the samples; without one it is the same for all.
        save_steps: steps whose iterates to keep in `solution.trajectory`, 0 being the start; beyond the last step they
            are the solution. Their gradient is that of one step from each (`Phantom`: of its steps; `Unrolled`: exact).
        compile: True makes steps by `torch.compile`, a period of `Anderson` a call: a quarter to a third less time
            forward where the state is small or `f` is of many cheap operations. For `Anderson`, `Picard` and the first
            method of a `Polyalgorithm`, one real tensor, and what `torch.compile(f, fullgraph=True)` takes; a module,
            or a function that is not made anew for each solve, is compiled once, and once more, at the same price, for
            other batch sizes and for every new value of an attribute that the function uses. "auto" does so for small
            states once 20 seconds were spent on a function without, and goes on without where that cannot be done.
            Gradients are made as without.
        on_failure: "raise", "warn" or "ignore" samples that do not converge, forward and backward.

    Returns:
        A `Solution`; `solution.value` is like `z0`.

    Raises:
        ConvergenceError: some sample did not converge (with `on_failure="raise"`); carries the solution.
        CaptureError: `f` depends on a tensor that requires grad and is neither argument nor parameter.
        TypeError: the state is not floating, or `f` returns another dtype.
        ValueError: the state is empty, or `f` returns another structure or shape.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> W, x = 0.1 * torch.randn(5, 5, requires_grad=True), torch.randn(8, 5)
        >>> sol = ti.fixed_point(
        ...     lambda z, W, x: torch.tanh(z @ W + x), torch.zeros(8, 5), W, x
        ... )
        >>> sol.value.sum().backward()
        >>> bool(sol.report.converged and sol.backward.converged)
        True
    """
    f = f.begin(z0, args, batch_dims) if isinstance(f, PreparedMap) else f
    problem, review = FixedPoint(f, z0, args, batch_dims, batched_args), None
    if isinstance(f, PreparedMap):  # a splitting's step is known once the problem has begun
        solver = f.tolerances(solver) if isinstance(solver, Solver) else solver
        review = partial(_reviewed, problem)
    options = Options(solver, adjoint, warm_start, on_failure, trace, save_steps, review, compile=compile)
    return solve_problem(problem, z0, options)


def _reviewed(problem: Problem, residual: Residual, result: Result) -> None:
    """Asks a map that prepared itself how its own solves went, with the tensors that the solve had."""
    bound: Any = residual.bound
    if bound is not None:
        bound.f.review(problem.layout.unflatten(result.z.detach()), bound.args, problem.batch_dims, result)


@public
@transforms.outside_inference_mode
def root(
    g: Callable,
    z0: Any,
    *args: Any,
    solver: Solver = Newton(),
    adjoint: Adjoint | None = None,
    batch_dims: int = 1,
    warm_start: Solution | None = None,
    trace: bool = False,
    batched_args: Sequence[int] | None = None,
    save_steps: Sequence[int] = (),
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Solves $g(z, a) = 0$ for $z$, sample by sample, differentiably in the arguments $a$.

    As `fixed_point`, for a residual. A sample has converged when the Newton step from it is no longer than `atol + rtol
    * |z|`, unknown by unknown (see `Solver`), however unknowns and equations are scaled; it is computed wherever a
    solver's steps have become short. Solvers for fixed points apply to `z - g(z)`: `Anderson` and `Picard` need `g`
    scaled such that this map contracts.

    Args:
        g: `g(z, *args)`, structure, shapes and dtype as `z`.
        z0: see `fixed_point`.
        *args: see `fixed_point`.
        solver: see `fixed_point`.
        adjoint: None takes `Implicit(LU())` up to 256 unknowns per sample, which is exact in whatever units these are,
            and `Implicit()` beyond; see `fixed_point`.
        batch_dims: see `fixed_point`.
        warm_start: see `fixed_point`.
        trace: see `fixed_point`.
        batched_args: see `fixed_point`.
        save_steps: see `fixed_point`.
        on_failure: see `fixed_point`.

    Returns:
        A `Solution`; `solution.value` is like `z0`.

    Raises:
        ConvergenceError: see `fixed_point`, as for the other errors.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> a = torch.tensor([2.0, 9.0], requires_grad=True)
        >>> sol = ti.root(lambda z, a: z**2 - a, torch.ones(2), a)
        >>> [round(v, 3) for v in sol.value.tolist()]
        [1.414, 3.0]
    """
    problem = Root(g, z0, args, batch_dims, batched_args)
    return solve_problem(problem, z0, Options(solver, adjoint, warm_start, on_failure, trace, save_steps))


def solve_problem(problem: Problem, z0: Any, options: Options) -> Solution:
    """Solves a problem and attaches the gradient: what all public functions of points have in common.

    Args:
        problem: the condition.
        z0: see `fixed_point`.
        options: how.
    """
    adjoint = options.adjoint
    if adjoint is None:
        adjoint = Implicit(LU()) if problem.layout.width <= DENSE else Implicit()
    check_options(options.solver, adjoint, options.on_failure, options.save_steps)
    check_compile(options.compile, options.solver, options.plain)
    z0, left = (z0, {}) if options.warm_start is None else _where_left(problem, options.warm_start)
    z0, tensors = transforms.normal((z0, problem.explicit.take_tensors()))
    start = problem.layout.flatten(z0)
    if not problem.layout.batch:
        return _solved_nothing(problem, start, tensors, options)
    differentiable = torch.is_grad_enabled()
    if differentiable and transforms.active():
        # Inside a solve, transforms have been peeled off and a captured tensor can no longer be told: look beforehand.
        with problem.bind(tensors, audit=True) as residual:
            residual(start.detach())
    wants_inverse = differentiable and adjoint.wants_inverse
    ahead = choose_ahead(options.compile, problem, options.solver, options.plain)
    loop = _loop(problem, options, left, ahead)
    call = PointCall(
        problem, loop, differentiable, wants_inverse, detach=ahead is not None, on_failure=options.on_failure
    )
    if transforms.active() and not differentiable:  # solvers are not to meet what transforms wrap tensors in
        start, tensors = start.detach(), [tensor.detach() for tensor in tensors]
        value = ImplicitSolve.apply(call, GMRES(), start, *tensors)
    else:
        value = adjoint.solve(call, start, tensors) if differentiable else call.forward(start, tensors)
    return _finished(call, adjoint, value, start, tensors, options)


def _loop(
    problem: Problem, options: Options, left: dict[str, Any], ahead: Ahead | None
) -> Callable[[Residual, Tensor], Result]:
    """The solver in its loop, from a state, with what an earlier solution has `left` and what makes the first steps."""

    def run(residual: Residual, z: Tensor) -> Result:
        start = time.perf_counter()
        result = iterate(options.solver, residual, z, options.trace, options.save_steps, **left, ahead=ahead)
        if ahead is None and options.compile == "auto":
            spend(problem.f, time.perf_counter() - start)
        if options.review is not None:
            options.review(residual, result)
        return result

    return run


def _finished(
    call: PointCall, adjoint: Adjoint, value: Tensor, start: Tensor, tensors: list[Tensor], options: Options
) -> Solution:
    """The solution of a call that gave `value` `(B, n)`, samples that are not finite kept out of its gradients."""
    assert isinstance(call.problem, Problem)
    result = call.record.take_result()
    report = result.report
    report.name = type(call.problem).__name__
    nonfinite, again = find_nonfinite(value, report), None
    if nonfinite is not None:
        value, again = quarantine(call, adjoint, value, start, tensors, nonfinite)
    saved = [result.saved[step] for step in options.save_steps]
    if saved and call.audit:  # where gradients are wanted
        kept = again and [again.saved[step] for step in options.save_steps]
        saved = attached(call, adjoint, saved, tensors, nonfinite, kept)
    solution = _presented(call.problem, value, report, saved, result, options)
    react(report, options.on_failure, solution)
    return solution


def _where_left(problem: Problem, warm_start: Any) -> tuple[Any, dict[str, Any]]:
    """The state that an earlier solution ended in, and what the loop shall know of how it got there.

    Raises:
        TypeError: it is no solution.
        ValueError: it has other shapes.
    """
    if not isinstance(warm_start, Solution):
        got = type(warm_start).__name__
        raise TypeError(f"warm_start: got a {got}, expected a Solution; to start elsewhere pass z0")
    problem.layout.check(warm_start.value, subject="warm_start has")
    left = {"knowledge": warm_start.state, "settled": True, "ran": warm_start.ran}
    return pytree.tree_map(torch.detach, warm_start.value), left


def _presented(
    problem: Problem,
    value: Tensor,
    report: Report,
    saved: Sequence[Tensor],
    result: Result | None,
    options: Options,
) -> Solution:
    """Flat values `(B, n)` as the caller sees them, who may write into them: the adjoint keeps its own."""
    value, *saved = (own(problem.layout.unflatten(rows)) for rows in (value, *saved))
    learnt = (None, None) if result is None else (result.knowledge, result.ran)
    solution = Solution(value, report, tuple(saved), *learnt)
    return solution if options.present is None else options.present(solution)


def _solved_nothing(problem: Problem, start: Tensor, tensors: list[Tensor], options: Options) -> Solution:
    """The solution of an empty batch `(0, n)`, as other layers have it: gradients of zero, nothing evaluated."""
    value, none = unmoved(start.detach(), tensors), torch.zeros(0, dtype=torch.int64, device=start.device)
    report, backward = (
        Report(none, none, start.new_zeros(0), nfev=0, name=name) for name in (type(problem).__name__, "backward solve")
    )
    report.trace, report.backward, backward.linear = start.new_zeros(1, 0) if options.trace else None, backward, True
    return _presented(problem, value, report, [value] * len(options.save_steps), None, options)

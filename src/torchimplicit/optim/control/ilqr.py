"""The public function of nonlinear control: the best controls of a horizon, differentiably."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import Implicit, PointCall, PointRecord
from torchimplicit.adjoint.quarantine import without
from torchimplicit.core import transforms
from torchimplicit.core.options import check_on_failure, require_count, require_instance
from torchimplicit.core.problem import Residual
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure, Solution, Status, react
from torchimplicit.optim.control.bounds import Bound, as_bound, check_order, check_start
from torchimplicit.optim.control.box_ddp import Best, BoxDDP, free_of_bounds, like
from torchimplicit.optim.control.optimality import Band, Control, Optimality
from torchimplicit.optim.control.solution import ControlSolution
from torchimplicit.optim.control.task import Task


@public
@transforms.outside_inference_mode
def ilqr(
    dynamics: Callable,
    cost: Callable,
    x0: Tensor,
    horizon: int,
    lower: Bound = None,
    upper: Bound = None,
    *,
    final_cost: Callable | None = None,
    args: tuple = (),
    sequences: tuple = (),
    controls: int | None = None,
    u0: Tensor | None = None,
    warm_start: Solution | None = None,
    solver: BoxDDP = BoxDDP(),
    on_failure: OnFailure = "raise",
) -> ControlSolution:
    r"""The controls that steer a nonlinear system at least cost, sample by sample, differentiable in everything.

    $\min_u \sum_{t<T} c(x_t, u_t) + c_T(x_T)$ subject to $x_{t+1} = f(x_t, u_t)$, $l \le u_t \le h$.

    Gradients are those of the minimum itself, by the implicit function theorem on its optimality conditions: the second
    derivatives of dynamics and cost take part, whatever the solver used. (The last linear-quadratic step, which
    B. Amos and others differentiate in its place, arXiv:1810.13400, does not know how dynamics bend; without that, the
    gradients of a pendulum's torques were measured to be 4 to 24 % off.) A backward pass is one more sweep along the
    horizon, not a pass through the solver's steps. A local minimum is all that is
    claimed; which one depends on the start. Controls exactly at a bound, with no force against it, count as free.

    Not for linear dynamics with quadratic costs, where `lqr` needs no iteration, nor for bounds on states.
    Derivatives of every order, and by `torch.func` transforms but `torch.vmap`: the batch is dimension 0.

    Args:
        dynamics: `dynamics(x, u, *args) -> (B, nx)` from states `(B, nx)` and controls `(B, nu)`; a function or a
            module, samples independent, twice differentiable, fit for `torch.vmap` (times are mapped over).
        cost: `cost(x, u, *args) -> (B,)`.
        x0: first states, `(B, nx)`.
        horizon: number of steps, `T`.
        lower: lower bounds of the controls: a number, or a tensor that broadcasts to `(B, T, nu)`; None for none.
        upper: upper bounds.
        final_cost: `final_cost(x, *args) -> (B,)` of the last states.
        args: further arguments of all three, nested; their tensors, and modules' parameters, get gradients.
        sequences: tensors `(T, ...)`; row `t` is handed to dynamics and cost after `args` (prices, references).
        controls: the number of controls, `nu`, where neither a tensor of bounds nor a start tells; else 1.
        u0: start, `(B, T, nu)`; zero otherwise, within the bounds. Gets no gradient.
        warm_start: an earlier solution to start from in place of `u0`.
        solver: tolerances and limits.
        on_failure: "raise", "warn" or "ignore" samples that do not converge, forward and backward.

    Returns:
        A `ControlSolution`: `value` the controls, `states`, `cost`; differentiable. Its `costates` and `control_duals`
        are numbers without gradients.

    Raises:
        ConvergenceError: some sample did not converge, or not to a minimum (with `on_failure="raise"`); carries the
            solution.
        CaptureError: dynamics or cost depend on a tensor that requires grad and is neither argument nor parameter.
        TypeError: states are not floating.
        ValueError: shapes do not fit, or a lower bound lies above the upper one.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import ilqr
        >>> swing = lambda x, u: torch.stack(
        ...     (x[:, 0] + 0.1 * x[:, 1], x[:, 1] + 0.1 * (u[:, 0] - x[:, 0].sin())), 1
        ... )
        >>> effort = lambda x, u: x.square().sum(1) + 0.1 * u.square().sum(1)
        >>> x0 = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> plan = ilqr(swing, effort, x0, 20, -1.0, 1.0)
        >>> plan.value.shape, plan.states.shape
        (torch.Size([1, 20, 1]), torch.Size([1, 21, 2]))
        >>> plan.value[0, 0].backward()  # how the first control follows the state
    """
    functions = {"dynamics": dynamics, "cost": cost, "final_cost": final_cost}
    check_options(functions, horizon, solver, on_failure)
    _check_arguments(args, sequences, horizon)
    start, low, high = _check_shapes(x0, horizon, lower, upper, controls, u0, warm_start)
    # A bound method's module is found among the arguments: its parameters are explicit like those of a module.
    owners = tuple(getattr(function, "__self__", None) for function in functions.values())
    task = (x0, low, high, *functions.values(), tuple(args), tuple(sequences), *owners)
    problem = Control(Optimality(), start, task)
    return _solve(problem, start, low.detach(), high.detach(), solver, on_failure)


def _solve(problem: Control, start: Tensor, low: Tensor, high: Tensor, solver: BoxDDP, on_failure: OnFailure) -> Any:
    tensors = transforms.normal(problem.explicit.take_tensors())
    differentiable = torch.is_grad_enabled()
    _check_returns(problem, tensors, start)

    def run(residual: Residual, z: Tensor) -> Best:
        task = _bound(problem)
        residual(z)  # looks for captured tensors
        best = solver.run(task, z.view(start.shape))
        problem.f.scale = best.scale
        return best

    def plan(z: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        u = z.view(start.shape)
        with problem.bind(tensors):
            task = _bound(problem)
            states = task.rollout(u)
            return u, states, task.total(states, u)

    call = PointCall(problem, run, differentiable, on_failure=on_failure)
    adjoint, z0 = Implicit(Band(problem=problem)), start.flatten(1)
    z = adjoint.solve(call, z0, tensors) if differentiable else call.forward(z0, tensors)
    best: Best = call.record.take_result()
    best = best._replace(z=best.z.detach())  # it is the value itself, which has a graph by now
    nonfinite = best.report.status == Status.NON_FINITE
    if differentiable and not transforms.active() and bool(nonfinite.any()):
        u, states, cost = _without(call, adjoint, best, z0, tensors, plan)
    else:
        u, states, cost = plan(z, tensors)
    free = free_of_bounds(best.z.view(start.shape), best.slope, best.scale, low, high)
    duals = torch.where(free, 0, -best.slope)
    solution = ControlSolution(u, best.report, states=states, cost=cost, costates=best.costates, control_duals=duals)
    react(best.report, on_failure, solution)
    return solution


def _bound(problem: Control) -> Task:
    """The task with its tensors, inside of `bind`.

    Raises:
        NotImplementedError: another problem is bound, that of all mapped samples.
    """
    if problem.now is None:
        raise NotImplementedError("ilqr does not work under torch.vmap; try one batch, in dimension 0 of x0")
    return problem.now


def _without(
    call: PointCall, adjoint: Implicit, best: Best, z0: Tensor, tensors: list[Tensor], plan: Callable
) -> tuple[Tensor, ...]:
    """The plan, of which samples that are not finite are only numbers; healthy ones stand in for them meanwhile."""
    again = replace(call, record=PointRecord(), audit=False)
    nonfinite, plans = best.report.status == Status.NON_FINITE, []

    def solve(rows: Tensor, healthy: list[Tensor]) -> Tensor:
        z = adjoint.solve(again, z0[rows], healthy)
        plans.append(plan(z, healthy))
        return z

    z = without(call, best.z, tensors, nonfinite, solve)
    again.record.report = best.report  # backward reports go to the first solve's report
    with torch.no_grad():
        held = plan(best.z, tensors)
    if not plans:  # nobody is healthy
        return z.view(held[0].shape), *held[1:]
    return tuple(torch.where(like(nonfinite, mine), mine, theirs) for mine, theirs in zip(held, plans[0], strict=True))


def check_options(functions: dict[str, Any], horizon: Any, solver: Any, on_failure: Any) -> None:
    """Refuses what is no function, no number of steps, no solver and none of the three words.

    Raises:
        TypeError: a function or the solver is something else.
        ValueError: `horizon` is no integer above zero, or `on_failure` none of "raise", "warn", "ignore".
    """
    for name, function in functions.items():
        if not callable(function) and not (name == "final_cost" and function is None):
            raise TypeError(f"{name}: got a {type(function).__name__}, expected a function or a module")
    require_count("ilqr", horizon=horizon)
    require_instance("solver", solver, BoxDDP, "BoxDDP()")
    check_on_failure(on_failure)


def _check_arguments(args: Any, sequences: Any, horizon: int) -> None:
    for name, given in (("args", args), ("sequences", sequences)):
        if not isinstance(given, tuple | list):
            raise TypeError(f"{name}: got a {type(given).__name__}, expected a tuple; try {name}=(value,)")
    for i, sequence in enumerate(sequences):
        if not isinstance(sequence, Tensor) or sequence.dim() == 0 or len(sequence) != horizon:
            got = tuple(sequence.shape) if isinstance(sequence, Tensor) else type(sequence).__name__
            raise ValueError(f"sequences: got {got} at {i}, expected a tensor ({horizon}, ...), time first")


def _check_returns(problem: Control, tensors: list[Tensor], start: Tensor) -> None:
    """Evaluates each function once, at the start, and refuses what it must not return."""
    with torch.no_grad(), problem.bind(tensors):
        task = _bound(problem)
        z = torch.cat((task.x0, start[:, 0]), 1)
        values = {"dynamics": task.step(z, *task.now(0)), "cost": task.stage_cost(z, *task.now(0))}
        if task.final_cost is not None:
            values["final_cost"] = task.last_cost(task.x0)
        for name, value in values.items():
            shape = task.x0.shape if name == "dynamics" else task.x0.shape[:1]
            if not isinstance(value, Tensor) or value.dtype != task.x0.dtype:
                got = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise TypeError(f"{name} returned {got}, expected {task.x0.dtype}, as x0")
            if value.shape != shape:
                hint = "" if name == "dynamics" else ", one number per sample; try .sum(1)"
                raise ValueError(f"{name} returned shape {tuple(value.shape)}, expected {tuple(shape)}{hint}")


def _check_shapes(
    x0: Tensor, horizon: int, lower: Bound, upper: Bound, controls: int | None, u0: Tensor | None, warm: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The start and the bounds, `(B, T, nu)` each."""
    check_start(x0)
    if warm is not None and not isinstance(warm, Solution):
        raise TypeError(f"warm_start: got a {type(warm).__name__}, expected a Solution; to start elsewhere pass u0")
    u0 = warm.value.detach() if warm is not None else u0
    width = controls
    for given in (u0, lower, upper):
        if width is None and isinstance(given, Tensor) and given.dim():
            width = given.shape[-1]
    width = 1 if width is None else width
    shape = (len(x0), horizon, width)
    low = as_bound("lower", lower, -math.inf, shape, x0)
    high = as_bound("upper", upper, math.inf, shape, x0)
    check_order("lower", "upper", low, high)
    if u0 is None:
        return torch.zeros_like(low).clamp(low.detach(), high.detach()), low, high
    if not isinstance(u0, Tensor) or u0.shape != shape or u0.dtype != x0.dtype:
        got = f"{tuple(u0.shape)} {u0.dtype}" if isinstance(u0, Tensor) else type(u0).__name__
        raise ValueError(f"ilqr: got a start of {got}, expected controls {shape} of {x0.dtype}, like x0")
    return u0.detach(), low, high

"""The front door of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.status import OnFailure, Solution, react
from torchimplicit.core.tree import Layout
from torchimplicit.ode.adjoint import Checkpointed, PathAdjoint
from torchimplicit.ode.call import PathCall, PathRecord
from torchimplicit.ode.dynamics import Dynamics
from torchimplicit.ode.methods import AdaptiveSolver, PathSolver, Tsit5
from torchimplicit.ode.times import check_times, runs_backward


def odeint(
    f: Callable,
    y0: Any,
    ts: Tensor,
    *args: Any,
    solver: PathSolver = Tsit5(),
    adjoint: PathAdjoint = Checkpointed(),
    steps: Literal["per-sample", "joint"] = "per-sample",
    batched_args: Sequence[int] | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Solves $\dot y = f(t, y, a)$, $y(t_0) = y_0$, sample by sample, differentiably in $y_0$, the times and $a$.

    Every tensor that shall get a gradient must be an argument, or a parameter of `f` when `f` is an `nn.Module` or a
    bound method of one; a captured one is refused. `f` is never evaluated before the first or after the last time.

    Args:
        f: `f(t, y, *args) -> dy/dt`, structure, shapes and dtype as `y`; samples independent. `t` is shaped
            `(B, 1, ...)`, such that it broadcasts against the first leaf of `y`; with `steps="joint"` it is one number.
        y0: start: a floating or complex tensor `(B, ...)` or a nest of such.
        ts: times, the first one that of `y0`, strictly increasing or strictly decreasing: `(T,)`, or `(T, B)` for times
            of every sample's own.
        *args: further arguments of `f`, nested; tensors and modules among them are differentiated.
        solver: `Tsit5()`, `Dopri5()`, `RK4(dt=...)`, ... with its tolerances.
        adjoint: `Checkpointed()`, `Direct()`, ...
        steps: "per-sample" gives each sample step sizes of its own, so that no answer depends on its batch mates;
            "joint" one step size for all, as if the batch were one system: cheaper where samples are alike.
        batched_args: positions of those `args` that carry the batch in dimension 0, the others being the same for every
            sample; `()` for none. Lets the solve go on without the samples that have arrived, once half of a large
            batch has; None never does.
        on_failure: "raise", "warn" or "ignore" samples that do not reach the last time, forward and backward. Their
            outputs beyond the time reached hold the last state.

    Returns:
        A `Solution`; `solution.value` is like `y0` with the times in front, `(T, B, ...)`; `solution.report` is a
        `PathReport`.

    Raises:
        ConvergenceError: some sample did not arrive (with `on_failure="raise"`); carries the solution.
        CaptureError: `f` depends on a tensor that requires grad and is neither argument nor parameter.
        TypeError: state or times are not floating, or `f` returns another dtype.
        ValueError: the times are not monotone, or `f` returns another structure or shape.

    Example:
        >>> import torch, torchimplicit as ti
        >>> rate = torch.tensor(0.5, requires_grad=True)
        >>> ts = torch.linspace(0, 2, 5)
        >>> sol = ti.odeint(lambda t, y, rate: -rate * y, torch.ones(3, 1), ts, rate)
        >>> sol.value.shape
        torch.Size([5, 3, 1])
        >>> sol.value[-1].sum().backward()
        >>> torch.allclose(rate.grad, torch.tensor(-6 * 0.36788), rtol=1e-3)
        True
    """
    check_options(solver, adjoint, steps, on_failure)
    batch_dims = 1 if steps == "per-sample" else 0
    layout = Layout(y0, batch_dims)
    ts = check_times(ts, layout)
    dynamics = Dynamics(f, y0, args, batch_dims, batched_args, runs_backward(ts))
    times = dynamics.user_time(ts.expand(-1, layout.batch))
    start, tensors = layout.flatten(y0), dynamics.explicit.take_tensors()
    differentiable = torch.is_grad_enabled()
    checkpoints = adjoint.checkpoints if differentiable else 0
    call = PathCall(dynamics, _flat(solver, layout), on_failure, differentiable, PathRecord(), checkpoints)
    rows = adjoint.solve(call, start, times, tensors) if differentiable else call.forward(start, times, tensors)
    report = call.record.report
    assert report is not None
    solution = Solution(_paths(layout, rows), report)
    react(report, on_failure, solution)
    return solution


def _paths(layout: Layout, rows: Tensor) -> Any:
    """Outputs `(T, B, n)` as the state's nest with the times in front."""
    if layout.plain:
        return rows.reshape(len(rows), *layout.shapes[0])
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *(layout.unflatten(row) for row in rows.unbind()))


def _flat(solver: PathSolver, layout: Layout) -> PathSolver:
    """The solver with tolerances for the flat state."""
    if not isinstance(solver, AdaptiveSolver):
        return solver
    changed = {}
    for name in ("rtol", "atol"):
        value = getattr(solver, name)
        if isinstance(value, Tensor):
            changed[name] = layout.flatten(value.to(layout.dtype).expand(layout.shapes[0])) if layout.plain else value
    return replace(solver, **changed) if changed else solver


def check_options(solver: Any, adjoint: Any, steps: str, on_failure: str) -> None:
    """Refuses what is no solver, no adjoint and none of the words.

    Raises:
        TypeError: `solver` or `adjoint` is something else, the class in place of an instance for example.
        ValueError: another word.
    """
    wanted = (("solver", solver, PathSolver, "Tsit5()"), ("adjoint", adjoint, PathAdjoint, "Checkpointed()"))
    for name, got, expected, usual in wanted:
        if not isinstance(got, expected):
            hint = f"{got.__name__}()" if isinstance(got, type) else usual
            raise TypeError(f"{name}: got {got!r}, expected an instance of {expected.__name__}; try {hint}")
    if steps not in ("per-sample", "joint"):
        raise ValueError(f"steps: got {steps!r}, expected 'per-sample' or 'joint'")
    if on_failure not in ("raise", "warn", "ignore"):
        raise ValueError(f"on_failure: got {on_failure!r}, expected 'raise', 'warn' or 'ignore'")

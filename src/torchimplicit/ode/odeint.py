"""The front door of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from torchimplicit.adjoint import unmoved
from torchimplicit.core import transforms
from torchimplicit.core.front_door import front_door
from torchimplicit.core.status import OnFailure, react
from torchimplicit.core.tree import Layout, own
from torchimplicit.ode.adjoint import Checkpointed, PathAdjoint
from torchimplicit.ode.call import PathCall, PathRecord
from torchimplicit.ode.dense import Followed, check_follows, stacked
from torchimplicit.ode.dynamics import Dynamics
from torchimplicit.ode.event import Event, Trigger
from torchimplicit.ode.gate import PathGate
from torchimplicit.ode.inputs import Inputs
from torchimplicit.ode.jumps import check_jumps
from torchimplicit.ode.methods import AdaptiveSolver, PathSolver, Tsit5
from torchimplicit.ode.quarantine import find_sick, quarantine, quarantine_followed
from torchimplicit.ode.report import Crossings, PathReport, PathSolution
from torchimplicit.ode.stretches import followed_to_end, walked
from torchimplicit.ode.times import check_dt_max, check_times
from torchimplicit.ode.when_to_compile import check_compile, decide, spending


@front_door
@transforms.outside_inference_mode
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
    event: Event | Sequence[Event] | None = None,
    dense: bool = False,
    compile: bool | Literal["auto"] = False,
    callback: Callable | None = None,
    dt_max: float | Tensor | None = None,
    jumps: Tensor | None = None,
    doses: Any = None,
) -> PathSolution:
    r"""Solves $\dot y = f(t, y, a)$, $y(t_0) = y_0$, sample by sample, differentiably in $y_0$, the times and $a$.

    Every tensor that shall get a gradient must be an argument, or a parameter of `f` when `f` is an `nn.Module` or a
    bound method of one; a captured one is refused. `f` is never evaluated before the first or after the last time.

    Args:
        f: `f(t, y, *args) -> dy/dt`, structure, shapes and dtype as `y`; samples independent. `t` is shaped
            `(B, 1, ...)`, such that it broadcasts against the first leaf of `y`; with `steps="joint"` it is one number.
        y0: start: a floating or complex tensor `(B, ...)` or a nest of such.
        ts: times, the first one that of `y0`, strictly increasing or strictly decreasing: `(T,)`, or `(T, B)` for times
            of every sample's own. Series of different lengths are padded with NaN, or with their last time again; the
            outputs there hold the last state, and `solution.mask` says which they are.
        *args: further arguments of `f`, nested; tensors and modules among them are differentiated.
        solver: `Tsit5()`, `Dopri5()`, `RK4(dt=...)`, ... with its tolerances.
        adjoint: `Checkpointed()`, `Direct()`, ...
        steps: "per-sample" gives each sample step sizes of its own, so that no answer depends on its batch mates;
            "joint" one step size for all, as if the batch were one system: cheaper where samples are alike.
        batched_args: positions of those `args` that carry the batch in dimension 0, the others being the same for every
            sample; `()` for none. Lets the solve go on without the samples that have arrived, once half of a large
            batch has; None never does. The answers of explicit methods stay the same but for rounding, those of stiff
            ones, whose Jacobians are then renewed, within their tolerance.
        on_failure: "raise", "warn" or "ignore" samples that do not reach the last time, forward and backward. Their
            outputs beyond the time reached hold the last state.
        event: ends the walk of every sample where its condition changes sign: outputs at later times hold the event's
            state, `solution.event_time` and `solution.event_state` tell of it. One that never fires is no failure. Of
            several, the first to fire ends the walk; `solution.event_index` says which, `solution.crossings` where
            each was met, those that are not `terminal` included.
        dense: give `solution.path`, the path as a function of time.
        compile: True makes steps by `torch.compile`, several a call: up to ten times faster where the state is small or
            `f` cheap, slower than plain steps where `f` is a large network, and the first solve of an `f` takes half a
            minute or more. Explicit adaptive solvers on a real tensor, times increasing. `f` must be one that
            `torch.compile(f, fullgraph=True)` takes; a module, or a function that is not made anew for each solve, is
            compiled once, and once more, at the same price, for a second batch size and for every new value of an
            attribute that it reads. "auto" begins to once 20 seconds were spent on an `f` and a small state, and goes
            on without where it cannot.
        callback: `callback(t, y, moved)`, called after every step of the forward walk in which some sample has moved:
            times `(B,)` and states like `y0`, copies without a gradient, and which samples moved, bool `(B,)`; `()` for
            times with `steps="joint"`. For progress, logs and plots: what it returns, or writes into, changes nothing,
            and it is not called in the backward pass. An exception ends the solve and comes out of it; to end a
            sample's walk and keep its path, use an `event`.
        dt_max: the largest step, in the unit of the times: a number, or `(B,)` for every sample's own; None for any.
            For what is shorter than steps that the tolerance allows: a pulse within one is seen by none of its stages,
            and stepped over without a sign. Adaptive solvers.
        jumps: times at which `f` jumps, or a dose is given: `(J,)`, or `(J, B)` for every sample's own; in any order,
            NaN or infinite where a sample has fewer. Steps end there, and begin anew: `f` is asked on either side, a
            few roundings off, and nothing is carried over but the state. Differentiable with every adjoint, by the step
            that `f` makes there and by the dose. An output at a jump, and its derivatives, are those of the side
            before. Jumps before the first time, at the last or after it, change nothing; one at the first has the
            gradient of its dose alone, for there `f` has no side before. `max_steps`, `dt0` and `checkpoints` are
            for each stretch between jumps.
        doses: what is added to the state at the jumps: like `y0` with the jumps in front, `(J, B, ...)`, or what
            broadcasts against that. One that carries an event's condition past zero is no crossing. None for nothing.

    Returns:
        A `PathSolution`; `solution.value` is like `y0` with the times in front, `(T, B, ...)`; `solution.mask` `(T, B)`
        is False at padding; `solution.report` is a `PathReport`.

    Raises:
        ConvergenceError: some sample did not arrive (with `on_failure="raise"`); carries the solution.
        CaptureError: `f` depends on a tensor that requires grad and is neither argument nor parameter.
        TypeError: state or times are not floating, or `f` returns another dtype.
        ValueError: the times are not monotone, or `f` returns another structure or shape.

    Examples:
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
    check_options(solver, adjoint, steps, on_failure, event, dense, callback)
    plain = event is None and not dense and callback is None and jumps is None
    check_compile(compile, solver, plain)
    batch_dims = 1 if steps == "per-sample" else 0
    layout = Layout(y0, batch_dims)
    ts, backward = check_times(ts, layout)
    solver.check(layout)
    check_reachable(solver, layout, y0)
    dynamics = Dynamics(f, y0, args, batch_dims, batched_args, backward)
    events = (event,) if isinstance(event, Event) else event
    trigger = None if events is None else Trigger(events, y0, args, batch_dims, batched_args, backward)
    times = dynamics.user_time(ts.expand(-1, layout.batch))
    start, tensors = layout.flatten(y0), dynamics.explicit.take_tensors()
    leaps = check_jumps(jumps, doses, dynamics, ts)
    differentiable = torch.is_grad_enabled()
    decided = decide(compile, f, solver, layout.batch * layout.width, plain)
    checkpoints = adjoint.checkpoints if differentiable else 2 * (event is not None)
    if dense and (solver.remembers or not differentiable):
        checkpoints = solver.max_steps
    call = PathCall(
        dynamics, _flat(solver, layout), on_failure, differentiable, PathRecord(), checkpoints, trigger, decided,
        callback, check_dt_max(dt_max, solver, layout, ts.dtype),
    )  # fmt: skip
    event_tensors = [] if trigger is None else trigger.explicit.take_tensors()
    gate = PathGate(call, adjoint, Inputs(start, times, tensors, event_tensors, leaps))
    with spending(f) if compile == "auto" and not decided else nullcontext():
        rows, followed = _walked(gate, differentiable, follows=event is not None or dense)
    gate.leave(rows, followed)
    report = call.record.report
    assert report is not None
    outputs = ts.detach().expand(-1, layout.batch)
    solution = PathSolution(own(stacked(layout, rows)), report, ts=outputs, **_found(followed, dynamics, report, dense))
    react(report, on_failure, solution)
    return solution


def _walked(gate: PathGate, differentiable: bool, follows: bool) -> tuple[Tensor, Followed | None]:
    """The outputs `(T, B, n)`, and what else there is to look at of a walk that is followed; the sick kept apart."""
    call, adjoint = gate.call, gate.adjoint
    inputs, followed = gate.enter() if differentiable else gate.inputs, None
    if follows:
        followed = followed_to_end(call, adjoint, inputs)
        rows = followed.rows
    else:
        rows = walked(call, adjoint, inputs)
    assert call.record.report is not None
    if differentiable and not bool(call.record.report.steps.any()):  # gradients of zero, as of other layers
        rows = unmoved(rows, [inputs.ts, *inputs.tensors])
    if (sick := find_sick(call, rows)) is None:
        return rows, followed
    gate.held = sick
    if followed is None:
        return quarantine(call, adjoint, rows, inputs, sick), None
    followed = quarantine_followed(call, adjoint, followed, inputs, sick)
    return followed.rows, followed


def _found(followed: Followed | None, dynamics: Dynamics, report: PathReport, dense: bool) -> dict[str, Any]:
    """What a `PathSolution` tells of its events and its path."""
    found: dict[str, Any] = {}
    if followed is not None and report.fired is not None:
        found["event_time"] = torch.where(report.fired, dynamics.user_time(followed.t), torch.nan)
        found["event_state"] = own(dynamics.layout.unflatten(followed.y))
        found["crossings"] = tuple(
            Crossings(dynamics.user_time(t), own(stacked(dynamics.layout, y)), ~t.detach().isnan())
            for t, y in followed.met
        )
    if followed is not None and dense:
        found["path"] = followed.path
    return found


def _flat(solver: PathSolver, layout: Layout) -> PathSolver:
    """The solver with tolerances for the flat state."""
    if not isinstance(solver, AdaptiveSolver):
        return solver
    changed = {}
    for name in ("rtol", "atol"):
        value = getattr(solver, name)
        if isinstance(value, Tensor):
            value = layout.flatten(value.to(layout.dtype).expand(layout.shapes[0])) if layout.plain else value
            changed[name] = transforms.unwrapped(value)  # transforms around the solve do not reach into it
    return replace(solver, **changed) if changed else solver


def check_options(
    solver: Any, adjoint: Any, steps: str, on_failure: str, event: Any = None, dense: bool = False, callback: Any = None
) -> None:
    """Refuses what is no solver, no adjoint, no event and none of the words.

    Raises:
        TypeError: `solver`, `adjoint`, `event` or `callback` is something else, a class in place of an instance say.
        ValueError: another word, or a solver and an adjoint, events or dense output that do not go together.
    """
    wanted = [("solver", solver, PathSolver, "Tsit5()"), ("adjoint", adjoint, PathAdjoint, "Checkpointed()")]
    several = isinstance(event, (list, tuple)) and len(event) > 0
    wanted += [(f"event[{i}]", one, Event, "Event(condition)") for i, one in enumerate(event if several else ())]
    wanted += [] if several or event is None else [("event", event, Event, "Event(condition), or a list of them")]
    for name, got, expected, usual in wanted:
        if not isinstance(got, expected):
            hint = f"{got.__name__}()" if isinstance(got, type) else usual
            raise TypeError(f"{name}: got {got!r}, expected an instance of {expected.__name__}; try {hint}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: got {callback!r}, expected a callable callback(t, y, moved)")
    adjoint.check(solver)
    if event is not None or dense:
        check_follows(solver, adjoint)
    if steps not in ("per-sample", "joint"):
        raise ValueError(f"steps: got {steps!r}, expected 'per-sample' or 'joint'")
    if on_failure not in ("raise", "warn", "ignore"):
        raise ValueError(f"on_failure: got {on_failure!r}, expected 'raise', 'warn' or 'ignore'")


def check_reachable(solver: PathSolver, layout: Layout, y0: Any) -> None:
    """Refuses tolerances below the rounding of the state's dtype, at which `f` sees it.

    Raises:
        ValueError: they are, where the walk starts.
    """
    if not isinstance(solver, AdaptiveSolver) or _smallest(solver.rtol) >= layout.eps:
        return
    size = 1.0 if transforms.active() or not layout.batch else float(layout.flatten(y0).detach().abs().max())
    if _smallest(solver.atol) < layout.eps * size:
        coarsest = max(layout.dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        name = type(solver).__name__
        raise ValueError(
            f"{name}(rtol={solver.rtol}, atol={solver.atol}): got tolerances below the rounding of the state, "
            f"{coarsest}, which is {layout.eps:.1e} of its size; try {name}(rtol={max(1e-5, 2 * layout.eps):.1g}), or "
            "y0 of a finer dtype, y0.double() or y0.float()"
        )


def _smallest(tolerance: float | Tensor) -> float:
    return float(tolerance.min()) if isinstance(tolerance, Tensor) else tolerance

"""From a field, a start and times to a solution: what every public function of paths does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import unmoved
from torchimplicit.core.status import react
from torchimplicit.core.tree import Layout, own
from torchimplicit.path.call import PathCall
from torchimplicit.path.dense.dense_path import stacked
from torchimplicit.path.dense.result import PathResult
from torchimplicit.path.engine import Engine
from torchimplicit.path.events.event import Trigger
from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.gate import PathGate
from torchimplicit.path.inputs import Inputs
from torchimplicit.path.jumps.check import check_jumps
from torchimplicit.path.jumps.stretched import integrate, integrate_recorded
from torchimplicit.path.options import Options, check_reachable, flat_tolerances
from torchimplicit.path.quarantine import find_nonfinite, quarantine, quarantine_result
from torchimplicit.path.report import PathReport
from torchimplicit.path.solution import Crossings, PathSolution
from torchimplicit.path.times import check_dt_max, check_times


def solve(
    f: Callable,
    y0: Any,
    ts: Tensor,
    args: tuple,
    layout: Layout,
    options: Options,
    engine: Engine,
    field: Callable[..., Dynamics] = Dynamics,
    made: Callable[..., PathSolution] = PathSolution,
) -> PathSolution:
    """Solves along a path, differentiably.

    Args:
        f: the vector field, `f(t, y, *args)`.
        y0: start, nested.
        ts: output times, `(T,)` or `(T, B)`.
        args: further arguments of `f`.
        layout: of the state.
        options: how.
        engine: makes the steps.
        field: makes `f` a field of flat states; takes what `Dynamics` does.
        made: makes the solution; takes what `PathSolution` does.
    """
    solver, batch_dims = options.solver, options.batch_dims
    ts, backward = check_times(ts, layout)
    solver.check(layout)
    check_reachable(solver, layout, y0)
    dynamics, trigger = field(f, y0, args, batch_dims, options.batched_args, backward, layout), None
    if options.events is not None:
        trigger = Trigger(options.events, y0, args, batch_dims, options.batched_args, backward, layout)
    inputs = Inputs(
        layout.flatten(y0),
        dynamics.user_time(ts.expand(-1, layout.batch)),
        dynamics.explicit.take_tensors(),
        [] if trigger is None else trigger.explicit.take_tensors(),
        check_jumps(options.jumps, options.doses, dynamics, ts),
    )
    differentiable = torch.is_grad_enabled()
    call = PathCall(
        options.name, dynamics, flat_tolerances(solver, layout), differentiable, options.checkpoints(differentiable),
        trigger, engine, options.callback, check_dt_max(options.dt_max, solver, layout, ts.dtype),
        on_failure=options.on_failure,
    )  # fmt: skip
    gate = PathGate(call, options.adjoint, inputs)
    rows, result = _integrated(gate, differentiable, options.needs_record)
    gate.leave(rows, result)
    report = call.record.report
    found, outputs = _found(result, dynamics, report, options.dense), ts.detach().expand(-1, layout.batch)
    solution = made(own(stacked(layout, rows)), report, ts=outputs, **found)
    react(report, options.on_failure, solution)
    return solution


def _integrated(gate: PathGate, differentiable: bool, needs_record: bool) -> tuple[Tensor, PathResult | None]:
    """The outputs `(T, B, n)`, and all else that was asked for; samples that are not finite kept apart."""
    call, adjoint = gate.call, gate.adjoint
    inputs, result = gate.enter() if differentiable else gate.inputs, None
    if needs_record:
        result = integrate_recorded(call, adjoint, inputs)
        rows = result.rows
    else:
        rows = integrate(call, adjoint, inputs)
    if differentiable:
        moved = call.record.moved
        if not (bool(call.record.report.steps.any()) if moved is None else moved):  # gradients of zero, as of layers
            rows = unmoved(rows, [inputs.ts, *inputs.tensors])
    if (nonfinite := find_nonfinite(call, rows)) is None:
        return rows, result
    gate.held = nonfinite
    if result is None:
        return quarantine(call, adjoint, rows, inputs, nonfinite), None
    result = quarantine_result(call, adjoint, result, inputs, nonfinite)
    return result.rows, result


def _found(result: PathResult | None, dynamics: Dynamics, report: PathReport, dense: bool) -> dict[str, Any]:
    """What a `PathSolution` tells of its events and its path."""
    found: dict[str, Any] = {}
    if result is not None and report.fired is not None:
        found["event_time"] = torch.where(report.fired, dynamics.user_time(result.t), torch.nan)
        found["event_state"] = own(dynamics.layout.unflatten(result.y))
        found["crossings"] = tuple(
            Crossings(dynamics.user_time(t), own(stacked(dynamics.layout, y)), ~t.detach().isnan())
            for t, y in result.met
        )
    if result is not None and dense:
        found["path"] = result.path
    return found

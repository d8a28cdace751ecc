"""Keeping a sample whose path is not finite out of everybody's gradients: see `adjoint.quarantine`.

Not finite are samples whose field gave NaN or infinity, or an event's condition where they end; and those that only a
gradient shows to be, whose steps are not found again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.adjoint.quarantine import unmoved, warn_of_leak
from torchimplicit.adjoint.replacement import replaced, stand_ins
from torchimplicit.core import transforms
from torchimplicit.core.independence import jolted
from torchimplicit.core.status import Status
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.call import PathCall, PathRecord
from torchimplicit.path.dense.result import PathResult
from torchimplicit.path.events.watch import Met
from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.inputs import Inputs
from torchimplicit.path.jumps.stretched import integrate, integrate_recorded


def find_nonfinite(call: PathCall, values: Tensor) -> Tensor | None:
    """Which samples must be kept out of the gradients of these outputs `(T, B, n)`; None where none must."""
    if not values.requires_grad or transforms.active():
        return None
    report, lost = call.record.report, call.record.lost
    if report.converged and lost is None:
        return None
    nonfinite = report.status == Status.NON_FINITE
    nonfinite = nonfinite if lost is None else nonfinite | lost
    return nonfinite if bool(nonfinite.any()) else None


def quarantine(call: PathCall, adjoint: PathAdjoint, values: Tensor, inputs: Inputs, nonfinite: Tensor) -> Tensor:
    """The outputs again, differentiable without the samples that are not finite: healthy ones stand in their place.

    Args:
        call: the call that gave `values`.
        adjoint: how to differentiate.
        values: the outputs `(T, B, n)`, samples that are not finite held at their last finite state.
        inputs: what the call was for.
        nonfinite: which samples are not finite, `(B,)` bool.
    """
    held = values.detach()
    if bool(nonfinite.all()):
        return unmoved(held, inputs.everything())
    with transforms.random_state_kept(held.device):
        again, healthy = stand_in(call, inputs, nonfinite)
        found = integrate(again, adjoint, healthy)
    _check_leak(call, again)
    return torch.where(nonfinite.unsqueeze(1), held, found)


def quarantine_result(
    call: PathCall, adjoint: PathAdjoint, result: PathResult, inputs: Inputs, nonfinite: Tensor
) -> PathResult:
    """As `quarantine`, of a solve with events or dense output."""
    held = result.detach()
    if bool(nonfinite.all()):
        rows, t, y = (unmoved(each, inputs.everything()) for each in (held.rows, held.t, held.y))
        met = [Met(*(unmoved(each, inputs.everything()) for each in one)) for one in held.met]
        return PathResult(rows, t, y, held.path.ending(y), met)
    with transforms.random_state_kept(held.rows.device):
        again, healthy = stand_in(call, inputs, nonfinite)
        found = integrate_recorded(again, adjoint, healthy)
    _check_leak(call, again)
    return held.beside(found, nonfinite)


def stand_in(call: PathCall, inputs: Inputs, nonfinite: Tensor) -> tuple[PathCall, Inputs]:
    """The call and its inputs with a healthy sample in the place of every one that is not finite."""
    rows, start, ts = stand_ins(nonfinite), inputs.y0.detach(), inputs.ts.detach()
    assert isinstance(call.dynamics, Dynamics)  # nothing is kept apart under torch.vmap
    dynamics, trigger = call.dynamics.of_rows(rows), None
    # At the start and at other states: where a weight meets a zero of the start, replacing it changes nothing.
    start, ts = start[rows], ts[:, rows]
    moved = jolted(start)
    probes = [(ts[0], start), (ts[-1], moved), (ts[-1], 2 * start - moved)]

    def slopes(tensors: list[Tensor]) -> Tensor:
        with dynamics.bind(call.unshared(tensors)) as field:
            return torch.stack([field(t, y) for t, y in probes], dim=1).nan_to_num()

    tensors = replaced(slopes, inputs.tensors, dynamics.explicit.shared, rows, nonfinite)
    event_tensors = inputs.event_tensors
    if call.trigger is not None:
        trigger = call.trigger.of_rows(rows)

        def conditions(tensors: list[Tensor]) -> Tensor:
            with trigger.bind(tensors) as conditions:
                return torch.stack([conditions.of_all(t, y) for t, y in probes], dim=1).nan_to_num()

        event_tensors = replaced(conditions, event_tensors, trigger.explicit.shared, rows, nonfinite)
    again = replace(call, dynamics=dynamics, trigger=trigger, audit=False, record=PathRecord(), callback=None)
    jumps = None if inputs.jumps is None else inputs.jumps.take(rows)
    return again, Inputs(inputs.y0[rows], inputs.ts[:, rows], tensors, event_tensors, jumps)


def _check_leak(call: PathCall, again: PathCall) -> None:
    if bool((again.record.report.status == Status.NON_FINITE).any()) or again.record.lost is not None:
        warn_of_leak()
    again.record.report = call.record.report  # that of a backward solve goes to the first solve's

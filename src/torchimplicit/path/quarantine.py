"""Keeping a sample whose path is not finite out of everybody's gradients: see `adjoint.quarantine`.

Sick are samples whose field gave NaN or infinity, or an event's condition where they end; and those that only a
gradient shows to be, whose steps are not found again.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from torchimplicit.adjoint.quarantine import replaced, stand_ins, unmoved, warn_of_leak
from torchimplicit.core import transforms
from torchimplicit.core.independence import jolted
from torchimplicit.core.status import Status
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.call import PathCall, PathRecord
from torchimplicit.path.dense.follow import Followed
from torchimplicit.path.events.watch import Met
from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.inputs import Inputs
from torchimplicit.path.jumps.stretches import followed_to_end, walked

D = TypeVar("D", bound=Dynamics)


def find_sick(call: PathCall, values: Tensor) -> Tensor | None:
    """Which samples must be kept out of the gradients of these outputs `(T, B, n)`; None where none must."""
    if not values.requires_grad or transforms.active():
        return None
    report, lost = call.record.report, call.record.lost
    assert report is not None
    if report.converged and lost is None:
        return None
    sick = report.status == Status.NON_FINITE
    sick = sick if lost is None else sick | lost
    return sick if bool(sick.any()) else None


def quarantine(call: PathCall, adjoint: PathAdjoint, values: Tensor, inputs: Inputs, sick: Tensor) -> Tensor:
    """The outputs again, differentiable without the sick samples: healthy ones walk in their place.

    Args:
        call: the call that gave `values`.
        adjoint: how to differentiate.
        values: the outputs `(T, B, n)`, sick samples held at their last finite state.
        inputs: what the call was for.
        sick: which samples are not finite, `(B,)` bool.
    """
    held = values.detach()
    if bool(sick.all()):
        return unmoved(held, inputs.everything())
    with transforms.random_state_kept(held.device):
        again, healthy = stand_in(call, inputs, sick)
        found = walked(again, adjoint, healthy)
    _check_leak(call, again)
    return torch.where(sick.unsqueeze(1), held, found)


def quarantine_followed(
    call: PathCall, adjoint: PathAdjoint, followed: Followed, inputs: Inputs, sick: Tensor
) -> Followed:
    """As `quarantine`, of a walk with events or dense output."""
    held = followed.detach()
    if bool(sick.all()):
        rows, t, y = (unmoved(each, inputs.everything()) for each in (held.rows, held.t, held.y))
        met = [Met(*(unmoved(each, inputs.everything()) for each in one)) for one in held.met]
        return Followed(rows, t, y, held.path.ending(y), met)
    with transforms.random_state_kept(held.rows.device):
        again, healthy = stand_in(call, inputs, sick)
        found = followed_to_end(again, adjoint, healthy)
    _check_leak(call, again)
    return held.beside(found, sick)


def stand_in(call: PathCall, inputs: Inputs, sick: Tensor) -> tuple[PathCall, Inputs]:
    """The call and its inputs with a healthy sample in the place of every sick one."""
    rows, start, ts = stand_ins(sick), inputs.y0.detach(), inputs.ts.detach()
    assert isinstance(call.dynamics, Dynamics)  # nothing is kept apart under torch.vmap
    dynamics, trigger = _of_rows(call.dynamics, rows), None
    # At the start and at other states: where a weight meets a zero of the start, replacing it changes nothing.
    start, ts = start[rows], ts[:, rows]
    moved = jolted(start)
    probes = [(ts[0], start), (ts[-1], moved), (ts[-1], 2 * start - moved)]

    def slopes(tensors: list[Tensor]) -> Tensor:
        with dynamics.bind(call.unshared(tensors)) as field:
            return torch.stack([field(t, y) for t, y in probes], dim=1).nan_to_num()

    tensors = replaced(slopes, inputs.tensors, dynamics.explicit.shared, rows, sick)
    event_tensors = inputs.event_tensors
    if call.trigger is not None:
        trigger = _of_rows(call.trigger, rows)

        def conditions(tensors: list[Tensor]) -> Tensor:
            with trigger.bind(tensors) as conditions:
                return torch.stack([conditions.of_all(t, y) for t, y in probes], dim=1).nan_to_num()

        event_tensors = replaced(conditions, event_tensors, trigger.explicit.shared, rows, sick)
    again = replace(call, dynamics=dynamics, trigger=trigger, audit=False, record=PathRecord(), callback=None)
    jumps = None if inputs.jumps is None else inputs.jumps.take(rows)
    return again, Inputs(inputs.y0[rows], inputs.ts[:, rows], tensors, event_tensors, jumps)


def _of_rows(dynamics: D, rows: Tensor) -> D:
    """Dynamics, or a trigger, at whose places other samples of it stand."""
    dynamics = copy(dynamics)
    dynamics.sign = None if dynamics.sign is None else dynamics.sign[rows]
    return dynamics


def _check_leak(call: PathCall, again: PathCall) -> None:
    report = again.record.report
    assert report is not None
    if bool((report.status == Status.NON_FINITE).any()) or again.record.lost is not None:
        warn_of_leak()
    again.record.report = call.record.report  # that of a walk back goes to the first walk's

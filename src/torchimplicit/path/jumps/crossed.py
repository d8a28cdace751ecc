"""Events that a jump carries a path past, as a dose does that lifts a concentration over a threshold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.events.event import Trigger
from torchimplicit.path.events.rounding import ROUNDINGS, sway
from torchimplicit.path.events.watch import Met


class Crossed(NamedTuple):
    """What a jump does to the events of every sample.

    Attributes:
        side: the signs of their conditions behind it, `(B, E)`.
        event: which event ends the solve there, -1 for none, `(B,)`.
        met: the crossings of every event, at the time of the jump and the state behind it; none where nobody crosses.
    """

    side: Tensor
    event: Tensor
    met: list[Met]


class BeforeJump(NamedTuple):
    """Where samples come to a jump.

    Attributes:
        side: the signs of the events' conditions, `(B, E)`; zero where an event has just been met.
        y: the states, `(B, n)`.
        size: how large they have been where stretches began and ended, whose roundings they carry, `(B, n)`.
        just: which events were met within roundings of here, `(B, E)`.
    """

    side: Tensor
    y: Tensor
    size: Tensor
    just: Tensor


def crossed(
    trigger: Trigger, tensors: list[Tensor], start: BeforeJump, t: Tensor, y: Tensor, goes_on: Tensor
) -> Crossed:
    """Compares conditions before a jump and behind it: another sign is a crossing, and so is a zero, as within a solve.

    A zero is one to rounding, for a dose of 1 that is to bring 1 to 0 does not quite. Where a condition has not
    changed at the jump, solves find by their signs what there is.

    Args:
        trigger: the events.
        tensors: those of their conditions.
        start: the samples before the jump.
        t: the times of the jump, `(B,)`, with their graph.
        y: the states behind it, `(B, n)`, with their graph.
        goes_on: whose solve goes on behind it, `(B,)`; the others cross nothing.
    """
    before, behind, rounding = _values(trigger, tensors, start, t, y)
    side = start.side
    left, zero = before.abs() <= rounding, behind.abs() <= rounding
    moves = goes_on.unsqueeze(1) & (side != 0) & (behind != before) & ~behind.isnan()
    fires = moves & ~(left & start.just) & (left | zero | (side * behind < 0)) & (side * trigger.directions <= 0)
    side = torch.where(moves, torch.where(zero, 0.0, behind.sign()), side)
    nobody = torch.full_like(goes_on, -1, dtype=torch.int64)
    if not bool(fires.any()):
        return Crossed(side, nobody, [])
    terminal = torch.tensor([event.terminal for event in trigger.events], device=fires.device)
    ends = fires & terminal
    event = torch.where(ends.any(1), ends.int().argmax(1), nobody)  # the first in the list
    places = torch.arange(len(terminal), device=fires.device)
    fires = fires & (~terminal | (event.unsqueeze(1) == places))
    met = [Met(torch.where(which, t, torch.nan).unsqueeze(0), y.unsqueeze(0)) for which in fires.unbind(1)]
    return Crossed(side, event, met)


def _values(
    trigger: Trigger, tensors: list[Tensor], start: BeforeJump, t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The conditions before a jump and behind it, and their roundings there, `(B, E)` each."""
    t, y = (transforms.unwrapped(each).detach() for each in (t, y))
    eps = torch.finfo(y.dtype).eps
    size = torch.maximum(start.size, y.abs())
    with torch.no_grad(), trigger.bind([transforms.unwrapped(each).detach() for each in tensors]) as conditions:
        before, behind = conditions.of_all(t, start.y), conditions.of_all(t, y)
        swayed = sway(conditions.of_all, behind, t * (1 + 0.381966 * eps**0.5), y, size)
    return before, behind, ROUNDINGS * eps * swayed

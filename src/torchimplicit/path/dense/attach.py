"""Times and states of events, differentiable by all that path and conditions depend on: implicit functions of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.adjoint import unmoved
from torchimplicit.core import transforms
from torchimplicit.path.adjoint.replay import valued
from torchimplicit.path.dense.evaluate import RecordedPath
from torchimplicit.path.events.event import Condition
from torchimplicit.path.events.watch import Met


class Recorded(NamedTuple):
    """What a solve found, without a graph.

    Attributes:
        rows: the outputs, `(T, B, n)`.
        reached: when each sample's solve ended, `(B,)`.
        event: which event ended it, -1 for none, `(B,)`.
        met: the crossings of every event.
    """

    rows: Tensor
    reached: Tensor
    event: Tensor
    met: Sequence[Met]


def attached(
    recorded: RecordedPath, event_tensors: list[Tensor], known: Recorded
) -> tuple[Tensor, Tensor, Tensor, list[Met]]:
    """The outputs of a solve, where it ended, times `(B,)` and states `(B, n)`, and its crossings, with their graphs.

    Args:
        recorded: the solve.
        event_tensors: those of the events' conditions, with their graphs.
        known: what it found.
    """
    late = recorded.ts > known.reached
    ahead = torch.where(late, known.reached, recorded.ts)
    if not known.met:
        rows = recorded.at(ahead, known=known.rows)
        return rows, known.reached, rows[-1], []
    there = [~each.t.isnan() for each in known.met]
    times = [torch.where(fires, each.t, known.reached) for fires, each in zip(there, known.met, strict=True)]
    at = torch.cat((ahead, *times))
    found = recorded.at(at, 2 if len(at) > len(late) else 0, known.rows)
    rows, *series = found.split([len(late), *(len(each) for each in times)])
    rows = rows[..., : recorded.y0.shape[1]]
    t, y, met = known.reached, rows[-1], _crossed(recorded, event_tensors, known.met, times, series)
    for i, each in enumerate(met):
        if len(each.t):  # the one crossing of an event that ends solves
            here = known.event == i
            t, y = torch.where(here, each.t[0], t), torch.where(here.unsqueeze(1), each.y[0], y)
    rows = torch.where((late & (known.event >= 0)).unsqueeze(2), y, rows)
    met = [
        Met(torch.where(fires, each.t, torch.nan), torch.where(fires.unsqueeze(2), each.y, y))
        for fires, each in zip(there, met, strict=True)
    ]
    inputs = [recorded.y0, recorded.ts, *recorded.tensors, *event_tensors]
    if any(len(each.t) == 0 for each in met):  # gradients of zero, as of samples that an event has not fired for
        t, met = unmoved(t, inputs), [Met(*(unmoved(part, inputs) for part in each)) for each in met]
    return rows, t, y, met


def _crossed(
    recorded: RecordedPath,
    event_tensors: list[Tensor],
    known: Sequence[Met],
    times: Sequence[Tensor],
    series: Sequence[Tensor],
) -> list[Met]:
    """The crossings of every event with their graphs, from the path's series at their times; see `differentiated`."""
    if recorded.call.trigger is None:
        return []
    met = []
    with recorded.call.trigger.bind(event_tensors) as conditions:
        for condition, each, at, rows in zip(conditions.each, known, times, series, strict=True):
            places = zip(at.unbind(), rows.unbind(), (~each.t.isnan()).unbind(), strict=True)
            found = [differentiated(recorded.call.name, condition, *place) for place in places]
            if found:
                t, y = (torch.stack(some) for some in zip(*found, strict=True))
                each = Met(t, valued(each.y, y))
            met.append(each)
    return met


def differentiated(name: str, condition: Condition, t: Tensor, series: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
    """Times `(B,)` and states `(B, n)` of events, differentiable by what condition and path depend on, twice.

    Two steps of Newton's method for the root of the condition along the path. They change no value, for they start at
    the root, but carry its derivatives, exact to second order.

    Args:
        name: of the public function that was called.
        condition: bound, to tensors with their graphs.
        t: the times, detached, `(B,)`.
        series: the path's states there and their first two derivatives by time, with their graphs, `(B, 3 n)`.
        fired: which samples have an event, `(B,)`; the others get the state at their time.

    Raises:
        ValueError: the path grazes the condition, so that the time has no derivative.
    """
    y, slope, bend = series.chunk(3, dim=1)

    def state(later: Tensor) -> Tensor:
        later = later.to(y.dtype).unsqueeze(1)
        return y + later * (slope + 0.5 * later * bend)

    def value(later: Tensor) -> Tensor:
        return condition(t + later, state(later))

    later = torch.zeros_like(t)
    for _ in range(2):
        rate = torch.where(fired, _slope(value, later), 1.0)
        if not transforms.active() and bool((rate == 0).any()):
            sample = int(torch.nonzero(rate == 0)[0])
            raise ValueError(
                f"event: the condition of sample {sample} does not change along the path at its event, so that the "
                "event's time has no derivative; expected a condition that crosses zero at a rate; try another one, or "
                f"torch.no_grad() around {name}"
            )
        step = torch.where(fired, value(later), 0.0) / rate
        later = later - (step - step.detach())
    return t + later, state(later)


def _slope(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The derivative of every sample's number by its own argument, `(B,)`, itself differentiable."""

    def total(at: Tensor) -> Tensor:
        return value(at).sum()

    if transforms.active():
        return torch.func.grad(total)(at)
    at = at if at.requires_grad else at.detach().requires_grad_()
    return torch.autograd.grad(total(at), at, create_graph=True)[0]

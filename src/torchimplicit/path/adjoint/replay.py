"""A path made again, step by step, as a graph that gradients flow through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.status import Status
from torchimplicit.path.call import PathCall
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.remake import tied
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


class Remade(NamedTuple):
    """A step made again: its recorded times, its span with its gradient, what it found, states around."""

    before: Tensor
    after: Tensor
    span: Span
    done: Stepped
    y: Tensor
    end: Tensor

    def theta(self, t: Tensor) -> Tensor:
        """Which part of the step times are, `(B,)`."""
        return (t - self.span.start) / torch.where(self.span.h == 0, 1.0, self.span.h)


def remake(call: PathCall, field: Field, starts: Tensor, stops: Tensor, y: Tensor, ts: Tensor) -> Iterator[Remade]:
    """All steps again, in one graph; arguments as those of `whole`."""
    stepper, ties = call.solver.stepper(y, graph=True), transforms.differentiating((ts,))
    lands = call.solver.stops_at_outputs
    # One read by the host for all steps, where it may look: most are steps of everybody.
    some_stay = [True] * len(stops) if transforms.level(stops) >= 0 else (stops <= starts).any(1).tolist()
    for number, (before, after) in enumerate(zip(starts.unbind(), stops.unbind(), strict=True)):
        start, stop = (tied(each, ts, lands) for each in (before, after)) if ties else (before, after)
        span = Span.of(start, stop, number)
        done = stepper(field, span, y, None)
        end = torch.where((after > before).unsqueeze(1), done.y, y) if some_stay[number] else done.y
        yield Remade(before, after, span, done, y, end)
        y = end


def whole(call: PathCall, starts: Tensor, stops: Tensor, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The outputs `(T, B, n)` again, all steps in one graph that every transform can go through.

    Args:
        call: the call that was solved.
        starts: times before every step, `(S, B)`; those of samples that stand still equal their `stops`.
        stops: times after it.
        y0: states at the first time, `(B, n)`.
        ts: output times, `(T, B)`.
        tensors: the explicit tensors.
    """
    y, values = y0, [y0, *[None] * (len(ts) - 1)]
    everybody, places = torch.arange(len(y0), device=y0.device), _places_within(stops, ts)
    with call.bind(ts, call.unshared(tensors)) as field, torch.enable_grad():
        for number, step in enumerate(remake(call, field, starts, stops, y0, ts)):
            for place in places.get(number, ()) if places is not None else range(1, len(ts)):
                within = (ts[place] > step.before) & (ts[place] <= step.after)
                theta = step.theta(ts[place])
                value, other = step.done.inside.at(theta, everybody), values[place]
                values[place] = torch.where(within.unsqueeze(1), value, step.y if other is None else other)
            y = step.end
        reached = stops[-1] if len(stops) else ts[0]
        held = [y if value is None else value for value in values]
        late = (ts > reached).unsqueeze(2)
        return torch.where(late, y, torch.stack(held))


def _places_within(stops: Tensor, ts: Tensor) -> dict[int, list[int]] | None:
    """Which output times but the first, by place, lie within some sample's step, by its number; None if unknown.

    Args:
        stops: times after every step, `(S, B)`; inside a transform the host cannot look.
        ts: output times, `(T, B)`.
    """
    if transforms.level(stops) >= 0 or transforms.level(ts) >= 0:
        return None
    found: dict[int, list[int]] = {}
    if len(stops) and len(ts) > 1:
        number = torch.searchsorted(stops.cummax(0).values.T.contiguous(), ts.detach()[1:].T.contiguous())
        place = torch.arange(1, len(ts), device=ts.device).expand_as(number)
        for key in torch.unique(number * len(ts) + place).tolist():
            found.setdefault(key // len(ts), []).append(key % len(ts))
    return found


def note_lost(call: PathCall, starts: Tensor, stops: Tensor, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor]) -> None:
    """Notes the samples whose steps are not found again, as may happen to an implicit one just before a blow-up.

    A stage made again is solved to rounding, which may fail where the path itself ends. Costs all steps once more where
    there is a sample whose path did. Arguments as those of `whole`.
    """
    report = call.record.report
    if transforms.active() or report.converged:
        return
    if not bool(((report.status == Status.STEP_TOO_SMALL) | (report.status == Status.NON_FINITE)).any()):
        return
    fixed = [each.detach() for each in (y0, ts, *tensors)]
    call.record.lose(~whole(call, starts, stops, fixed[0], fixed[1], fixed[2:]).isfinite().all(2).all(0))


def valued(value: Tensor, graph: Tensor) -> Tensor:
    """A value with the graph of another, which is the same but for rounding and the errors of stages' equations."""
    return value + (graph - graph.detach())


def relevant(within: Tensor, first: int = 0) -> Sequence[int]:
    """The output times, by place, that lie within some sample's step, as far as a transform lets one look."""
    if transforms.level(within) >= 0:
        return range(first, len(within))
    return torch.nonzero(within.any(1)).flatten().tolist()

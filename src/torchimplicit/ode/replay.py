"""A path made again, step by step, as a graph that gradients flow through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.status import Status
from torchimplicit.ode.call import PathCall
from torchimplicit.ode.dynamics import Field
from torchimplicit.ode.methods import Stepper
from torchimplicit.ode.record import Path, Step
from torchimplicit.ode.span import Span
from torchimplicit.ode.step import Inside, Stepped


def tied(times: Tensor, ts: Tensor) -> Tensor:
    """Times `(B,)` with their gradients: those that are output times `(T, B)` are these, others move with the start."""
    same = times == ts
    same &= same.cumsum(0) == 1  # the last time may stand there more than once
    moved = times + (ts[0] - ts[0].detach())
    return torch.where(same.any(0), torch.where(same, ts, 0.0).sum(0), moved)


def make_step(
    stepper: Stepper,
    field: Field,
    step: Step,
    y: Tensor,
    ts: Tensor,
    path: Path,
    wants_times: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Makes a step of a recorded path again, from states `(B, n)`.

    Returns:
        The states after it, `(B, n)`, and its outputs `(M, n)`; None where it has none.
    """
    start, stop = step.start, step.stop
    if wants_times:
        start, stop = tied(start, ts[: path.given]), tied(stop, ts[: path.given])
    span = Span.of(start, stop)
    done = stepper(field, span, y, None)
    end = done.y if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), done.y, y)
    if step.outputs is None:
        return end, None
    places, samples = step.outputs.places, step.outputs.samples
    part = (ts[places, samples] - start[samples]) / span.h[samples]
    return end, done.inside.at(part, samples) if path.given is None else _looked_at(done.inside, part, step, path)


def _looked_at(inside: Inside, part: Tensor, step: Step, path: Path) -> Tensor:
    """The outputs `(M, (1 + order) n)` within a step of a path that is looked at afterwards."""
    assert step.outputs is not None
    samples, full = step.outputs.samples, torch.nonzero(step.outputs.places >= path.plain).flatten()
    if path.order == 0 or len(full) == len(samples):
        return inside.series(part, samples, path.order)
    values = padded(inside.series(part, samples, 0), path.order)
    return values if not len(full) else values.index_copy(0, full, inside.series(part[full], samples[full], path.order))


def padded(states: Tensor, order: int) -> Tensor:
    """States `(..., n)` with zeros in the place of their derivatives, `(..., (1 + order) n)`."""
    return torch.nn.functional.pad(states, (0, order * states.shape[-1]))


class Remade(NamedTuple):
    """A step made again: its recorded times, its span with its gradient, what it found, states around."""

    before: Tensor
    after: Tensor
    span: Span
    done: Stepped
    y: Tensor
    end: Tensor

    def part(self, t: Tensor) -> Tensor:
        """Which part of the step times are, `(B,)`."""
        return (t - self.span.start) / torch.where(self.span.h == 0, 1.0, self.span.h)


def remake(call: PathCall, field: Field, starts: Tensor, stops: Tensor, y: Tensor, ts: Tensor) -> Iterator[Remade]:
    """All steps again, in one graph; arguments as those of `whole`."""
    stepper = call.solver.stepper(y)
    for before, after in zip(starts.unbind(), stops.unbind(), strict=True):
        span = Span.of(tied(before, ts), tied(after, ts))
        done = stepper(field, span, y, None)
        end = torch.where((after > before).unsqueeze(1), done.y, y)
        yield Remade(before, after, span, done, y, end)
        y = end


def whole(call: PathCall, starts: Tensor, stops: Tensor, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The outputs `(T, B, n)` again, all steps in one graph that every transform can go through.

    Args:
        call: the call that walked.
        starts: times before every step, `(S, B)`; those of samples that stand still equal their `stops`.
        stops: times after it.
        y0: states at the first time, `(B, n)`.
        ts: output times, `(T, B)`.
        tensors: the explicit tensors.
    """
    y, values = y0, [y0, *[None] * (len(ts) - 1)]
    everybody = torch.arange(len(y0), device=y0.device)
    with call.bind(ts, call.unshared(tensors)) as field, torch.enable_grad():
        for step in remake(call, field, starts, stops, y0, ts):
            within = (ts > step.before) & (ts <= step.after)
            for place in relevant(within, 1):
                part = step.part(ts[place])
                value, other = step.done.inside.at(part, everybody), values[place]
                values[place] = torch.where(within[place].unsqueeze(1), value, step.y if other is None else other)
            y = step.end
        reached = stops[-1] if len(stops) else ts[0]
        held = [y if value is None else value for value in values]
        late = (ts > reached).unsqueeze(2)
        return torch.where(late, y, torch.stack(held))


def note_lost(call: PathCall, starts: Tensor, stops: Tensor, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor]) -> None:
    """Notes the samples whose steps are not found again, as may happen to an implicit one just before a blow-up.

    A stage made again is solved to rounding, which may fail where the path itself ends. Costs all steps once more where
    there is a sample whose path did. Arguments as those of `whole`.
    """
    report = call.record.report
    if transforms.active() or report is None or report.converged:
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

"""One step of a recorded path, made again."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Path, Step
from torchimplicit.path.solver import Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Interpolant


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


def _looked_at(inside: Interpolant, part: Tensor, step: Step, path: Path) -> Tensor:
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

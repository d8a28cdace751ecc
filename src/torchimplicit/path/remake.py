"""One step of a recorded path, made again."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import Interpolant
from torchimplicit.path.query import Query
from torchimplicit.path.record import Outputs, Step
from torchimplicit.path.solver import Stepper
from torchimplicit.path.span import Span


def tied(times: Tensor, ts: Tensor, lands: bool) -> Tensor:
    """Times `(B,)` with their gradients: those that are output times `(T, B)` are these, others move with one.

    Args:
        times: before or after a step.
        ts: output times.
        lands: whether steps end at every output time and begin anew there, so that others move with the one before
            them; else with the first, from which all steps are counted.
    """
    same = times == ts
    same &= same.cumsum(0) == 1  # the last time may stand there more than once
    begun = ts[0]
    if lands:
        begun = ts.gather(0, (ts <= times).sum(0, keepdim=True).sub(1).clamp_min(0))[0]
    moved = times + (begun - begun.detach())
    return torch.where(same.any(0), torch.where(same, ts, 0.0).sum(0), moved)


def make_step(
    stepper: Stepper,
    field: Field,
    step: Step,
    y: Tensor,
    ts: Tensor,
    query: Query,
    outputs: Outputs | None,
    wants_times: bool = False,
    lands: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Makes a step of a recorded path again.

    Args:
        stepper: of the method.
        field: the vector field.
        step: the step.
        y: states before it, `(B, n)`.
        ts: the times of the query, `(T, B)`.
        query: what is asked of the path.
        outputs: the times within this step; None for none.
        wants_times: whether times want a gradient.
        lands: see `tied`.

    Returns:
        The states after it, `(B, n)`, and what was asked for, `(M, (1 + order) n)`; None where that is nothing.
    """
    span = step.span
    if wants_times:
        start, stop = (tied(each, ts[: query.given], lands) for each in (step.start, step.stop))
        span = Span.of(start, stop, step.number)
    done = stepper(field, span, y, None)
    end = done.y if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), done.y, y)
    if outputs is None:
        return end, None
    places, samples = outputs.places, outputs.samples
    theta = (ts[places, samples] - span.start[samples]) / span.h[samples]
    if query.given is None:
        return end, done.inside.at(theta, samples)
    return end, _asked(done.inside, theta, outputs, query)


def _asked(inside: Interpolant, theta: Tensor, outputs: Outputs, query: Query) -> Tensor:
    """States and derivatives `(M, (1 + order) n)` within a step of a path that is evaluated afterwards."""
    samples, order = outputs.samples, query.order
    full = torch.nonzero(outputs.places >= query.values_only).flatten()
    if order == 0 or len(full) == len(samples):
        return inside.series(theta, samples, order)
    values = padded(inside.series(theta, samples, 0), order)
    return values if not len(full) else values.index_copy(0, full, inside.series(theta[full], samples[full], order))


def padded(states: Tensor, order: int) -> Tensor:
    """States `(..., n)` with zeros in the place of their derivatives, `(..., (1 + order) n)`."""
    return torch.nn.functional.pad(states, (0, order * states.shape[-1]))

"""Steps that are known before a solve: what everybody does at the same times is looked at once in a while."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from torchimplicit.path.engine import Foreseen
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Outputs, Phase, Step
from torchimplicit.path.span import Span
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.grid import Grid, is_shared, require_fitting
from torchimplicit.sde.solver import SDESolver
from torchimplicit.sde.steps import LONGEST


def ahead(solver: SDESolver, ts: Tensor) -> Foreseen | None:
    """See `Engine.ahead`: steps of one size to the same times for all samples."""
    known = known_beforehand(solver, ts)
    return None if known is None else partial(_steps, solver, *known)


def known_beforehand(solver: SDESolver, ts: Tensor) -> tuple[Tensor, Tensor, dict[int, int]] | None:
    """Steps that are the same for all samples; None where they are not.

    Returns:
        The times around them, `(S + 1, 1)`, their lengths, `(S, 1)`, and which output time the first so many lead to.
    """
    if solver.adapts or ts.requires_grad or not is_shared(ts):
        return None
    require_fitting(solver, ts)
    grid = Grid(ts[:, :1], solver.dt_given)
    landings = grid.landings
    if landings is None or not 0 < max(landings) <= solver.max_steps:
        return None
    times = torch.cat((grid.ts[:1], grid.stops(0, max(landings))))
    h = times.diff(dim=0)
    return (times, h, landings) if bool((h > 0).all()) else None


def _steps(
    solver: SDESolver,
    times: Tensor,
    h: Tensor,
    landings: dict[int, int],
    field: Field,
    y: Tensor,
    phase: Phase | None,
) -> tuple[Tensor, int] | None:
    """See `Foreseen`. Nothing depends on what steps find, as long as all states are finite, and so is their sum."""
    assert isinstance(field, NoisyField)
    values, total, batch = [y], len(h), len(y)
    count = -(-total // -(-total // LONGEST))  # as many each time, so that the noise's room fits again
    count += count % 2
    field.prepare(times[0].expand(batch), y)
    for first in range(0, total, count):
        some = h[first : first + count]
        ends, lengths = (each.expand(-1, batch).unbind() for each in (times[first : first + count + 1], some))
        spans = list(map(Span, ends, ends[1:], lengths, range(first, total)))
        sizes = some.to(y.dtype).unsqueeze(2).unbind()
        paths = field.driver.increments(spans, some.squeeze(1), keep=torch.is_grad_enabled())
        for span, size, path in zip(spans, sizes, paths, strict=True):
            place = landings.get(span.number + 1)
            if phase is not None:
                phase.add(Step(span.start, span.stop, True, all_at(place, y), span.number), y)
            y, _ = solver.made(field, span, size, y, path)
            if place is not None:
                values.append(y)
        if not is_finite(y.detach()):
            return None
    return torch.stack(values), total


def is_finite(y: Tensor) -> bool:
    """Whether all numbers are, by their sum where that will do."""
    return math.isfinite(float(y.sum())) or bool(y.isfinite().all())


def all_at(place: int | None, y: Tensor) -> Outputs | None:
    """An output time, of all samples."""
    if place is None:
        return None
    samples = torch.arange(len(y), device=y.device)
    return Outputs(samples, torch.full_like(samples, place))

"""Steps that are known before a solve, all of them in one graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.grid import Grid, is_shared, require_fitting
from torchimplicit.sde.solver import SDESolver
from torchimplicit.sde.steps import LONGEST


def ahead(solver: SDESolver, ts: Tensor) -> Callable[[Field, Tensor], tuple[Tensor, int]] | None:
    """See `Engine.ahead`: steps of one size to the same times for all samples, these without a gradient."""
    if solver.adapts or ts.requires_grad or not is_shared(ts):
        return None
    require_fitting(solver, ts)
    grid = Grid(ts[:, :1], solver.dt_given)
    landings = grid.landings
    if landings is None or not 0 < max(landings) <= solver.max_steps or not bool(grid.stops(0, 1) > grid.ts[0]):
        return None
    return partial(_steps, solver, grid, landings)


def _steps(solver: SDESolver, grid: Grid, landings: dict[int, int], field: Field, y: Tensor) -> tuple[Tensor, int]:
    assert isinstance(field, NoisyField)
    values, total, t = [y], max(landings), grid.ts[0].expand(len(y))
    field.prepare(t, y)
    for first in range(0, total, LONGEST):
        spans, h = grid.spans(first, min(LONGEST, total - first), t)
        sizes = h.to(y.dtype).view(-1, 1, 1).expand(-1, len(y), 1).unbind()
        for span, size, path in zip(spans, sizes, field.driver.increments(spans, h, keep=True), strict=True):
            y, _ = solver.made(field, span, size, y, path)
            if span.number + 1 in landings:
                values.append(y)
        t = spans[-1].stop
    return torch.stack(values), total

"""Steps that are known before a solve: what everybody does at the same times is looked at once in a while."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from torchimplicit.core.transforms import remembered
from torchimplicit.path.engine import Foreseen
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Phase, SharedSteps
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.grid import Grid, is_shared, require_fitting
from torchimplicit.sde.solver import SDESolver

LOOK = 64  # steps between two reads by the host
MANY = 4096  # steps, above which they take more room than time to make again


def ahead(solver: SDESolver, ts: Tensor) -> Foreseen | None:
    """See `Engine.ahead`: steps of one size to the same times for all samples."""
    steps = known_beforehand(solver, ts)
    return None if steps is None else partial(_made, solver, steps)


def known_beforehand(solver: SDESolver, ts: Tensor) -> SharedSteps | None:
    """Steps to times `(T, B)` that are the same for all samples; None where they are not."""
    if solver.adapts or ts.requires_grad or not is_shared(ts):
        return None
    times, dt, batch = tuple(ts[:, 0].tolist()), solver.dt_given, ts.shape[1]
    require_fitting(solver, times[-1] - times[0])
    if dt is not None and times[-1] - times[0] > (solver.max_steps + 1) * dt:  # there may be no room for them
        return None
    many = dt is not None and times[-1] - times[0] > MANY * dt
    steps = (_between if many else _remembered)(times, dt, ts.dtype, ts.device, batch)
    if steps is None or len(steps) > solver.max_steps:
        return None
    return steps if batch > 1 else steps.copied()


def _between(
    outputs: tuple[float, ...], dt: float | None, dtype: torch.dtype, device: torch.device, batch: int
) -> SharedSteps | None:
    """See `known_beforehand`."""
    grid = Grid(torch.tensor(outputs, dtype=dtype, device=device).unsqueeze(1), dt)
    landings = grid.landings
    if landings is None or not max(landings):
        return None
    times = torch.cat((grid.ts[:1], grid.stops(0, max(landings))))
    h = times.diff(dim=0)
    return SharedSteps(times, h, landings, batch) if bool((h > 0).all()) else None


_remembered = remembered(_between)  # training solves for the same times again and again


def _made(
    solver: SDESolver, steps: SharedSteps, field: Field, y: Tensor, phase: Phase | None
) -> tuple[Tensor, int] | None:
    """See `Foreseen`. Nothing depends on what steps find, as long as all states are finite, and so is their sum."""
    assert isinstance(field, NoisyField)
    values, total, landings = [y], len(steps), steps.landings
    made = solver.advance if field.control is None else solver.made
    field.prepare(steps.times[0].expand(len(y)), y)
    spare = 0 if phase is None else max(0, phase.limit - total)  # the noise of the last steps takes their places
    paths, pauses = field.driver.foresee(steps, spare), {*landings, *range(LOOK, total, LOOK)}
    for (span, size), path in zip(steps.ways(y.dtype, len(field.driver.layout.shapes[0])), paths, strict=True):
        if phase is not None:
            phase.keep(span.number, y)
        y, _ = made(field, span, size, y, path)
        if (done := span.number + 1) not in pauses:
            continue
        if done in landings:
            values.append(y)
        if (done % LOOK == 0 or done == total) and not is_finite(y.detach()):
            field.driver.forget()
            return None
    if phase is not None:
        phase.steps = steps
    return torch.stack(values), total


def is_finite(y: Tensor) -> bool:
    """Whether all numbers are, by their sum where that will do."""
    return math.isfinite(float(y.sum())) or bool(y.isfinite().all())

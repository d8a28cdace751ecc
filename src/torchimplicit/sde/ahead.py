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
    times = tuple(ts[:, 0].tolist())
    require_fitting(solver, times[-1] - times[0])
    known = _between(times, solver.dt_given, ts.dtype, ts.device)
    return known if known is not None and len(known[1]) <= solver.max_steps else None


@remembered
def _between(
    outputs: tuple[float, ...], dt: float | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, dict[int, int]] | None:
    """See `known_beforehand`; training solves for the same times again and again."""
    grid = Grid(torch.tensor(outputs, dtype=dtype, device=device).unsqueeze(1), dt)
    landings = grid.landings
    if landings is None or not max(landings):
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
    steps, values, last = SharedSteps(times, h, landings, len(y)), [y], len(h) - 1
    field.prepare(times[0].expand(len(y)), y)
    spare = 0 if phase is None else max(0, phase.limit - len(h))  # the noise of the last steps takes their places
    sizes, paths = h.to(y.dtype).unsqueeze(2).unbind(), field.driver.foresee(steps, spare)
    for span, size, path in zip(steps.spans(), sizes, paths, strict=True):
        number = span.number
        if phase is not None:
            phase.keep(number, y)
        y, _ = solver.made(field, span, size, y, path)
        if number + 1 in landings:
            values.append(y)
        if (number % LOOK == LOOK - 1 or number == last) and not is_finite(y.detach()):
            field.driver.forget()
            return None
    if phase is not None:
        phase.steps = steps
    return torch.stack(values), len(h)


def is_finite(y: Tensor) -> bool:
    """Whether all numbers are, by their sum where that will do."""
    return math.isfinite(float(y.sum())) or bool(y.isfinite().all())

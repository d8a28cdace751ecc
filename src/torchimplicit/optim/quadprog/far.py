"""Bounds so far out that they are hardly meant: left out at first, and looked at when all else has been done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, largest
from torchimplicit.optim.quadprog.units import Units

INFINITE = 1e20  # what is no nearer is no bound at all
_GAP = 1e5
_NARROW = 1e2
_TIMES = 3


def without_infinite(program: Program) -> Program:
    """The programs without bounds of `INFINITE` and more."""
    apart = program.lower != program.upper
    upper = torch.where(apart & (program.upper >= INFINITE), torch.inf, program.upper)
    lower = torch.where(apart & (program.lower <= -INFINITE), -torch.inf, program.lower)
    return replace(program, upper=upper, lower=lower)


def ever_further(program: Program, gap: float = _GAP) -> Iterator[Tensor | None]:
    """How far out bounds are to be taken along, `(B, r)`: up to a gap in their sizes, up to the next, and all: None."""
    size = torch.where(program.length > 0, program.length, 1.0)
    bounds, high, low = _sizes(program, size)
    if bounds.shape[1] and bool((spread := high.amax(1, keepdim=True) > gap * low.amin(1, keepdim=True)).any()):
        # One number for "no bound" in all rows is further out in some than in others, by the units of these.
        size = 1 / Units.of(program).rows
        bounds, high, low = _sizes(program, size)
        known = bounds.isfinite() & (bounds > 0)
        fixed = (program.lower == program.upper).repeat(1, 2)
        start = torch.where(known & fixed, bounds, 0.0).amax(1, keepdim=True)
        start = torch.where(start > 0, start, low.amin(1, keepdim=True))
        order = low.sort(1).values
        ratio = torch.cat((order[:, 1:], torch.full_like(order[:, :1], torch.inf)), 1) / order
        # Of the gaps from the start on, those that are wide, or the widest where none is.
        inner = torch.where((order >= start) & ratio.isfinite(), ratio, 0.0)
        apart = spread & ((ratio > gap) | ((ratio >= largest(inner).unsqueeze(1)) & (ratio > _NARROW)))
        for _ in range(_TIMES):
            reach = torch.where(apart & (order >= start), order, torch.inf).amin(1, keepdim=True)
            if bool((reach >= largest(high).unsqueeze(1)).all()):
                break
            yield reach * size
            start = torch.where(order > reach, order, torch.inf).amin(1, keepdim=True)
    yield None


def _sizes(program: Program, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes of all bounds `(B, 2 r)` by those of their rows; with zero for none, and with infinity for zero."""
    bounds = torch.cat((program.lower / size, program.upper / size), 1).abs()
    return bounds, bounds.masked_fill(bounds == torch.inf, 0.0), bounds.masked_fill(bounds == 0, torch.inf)


def within(program: Program, reach: Tensor | None) -> Program:
    """The programs without bounds further out than `reach`, `(B, r)`."""
    if reach is None:
        return program
    upper = torch.where(program.upper.abs() > reach, torch.inf, program.upper)
    lower = torch.where(program.lower.abs() > reach, -torch.inf, program.lower)
    return replace(program, upper=upper, lower=lower)

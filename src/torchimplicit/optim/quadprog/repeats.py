"""Rows that repeat each other, in any scale and with any sign, made one row between the tightest of their bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, times
from torchimplicit.optim.quadprog.units import Units
from torchimplicit.optim.quadprog.verdict import TOLERANCE

_SAME = 1e-13
_ROUNDING = 1e-15


@dataclass(frozen=True)
class Repeats:
    """What became of the rows, all `(B, r)`.

    Attributes:
        above: the row whose bound is the upper one.
        below: the row whose bound is the lower one.
        factor: what a row must be multiplied by to be the first of its kind.
        kind: the number of that first row.
    """

    above: Tensor
    below: Tensor
    factor: Tensor
    kind: Tensor

    @staticmethod
    def merged(program: Program) -> tuple[Program, Repeats | None]:
        """The programs with no row twice: all but the first of a kind are without bounds. None if none is."""
        order, fresh, unit = _by_kind(program.rows)
        if bool(fresh.all()):
            return program, None
        batch, r = fresh.shape
        first = torch.where(fresh, torch.arange(r, device=order.device), 0).cummax(1).values
        leader = torch.zeros_like(order).scatter(1, order, order.gather(1, first))
        factor = unit.gather(1, leader) / unit
        factor = torch.where(leader == torch.arange(r, device=order.device), 1.0, factor)
        ends = torch.stack((program.lower * factor, program.upper * factor))
        low, high = ends.amin(0), ends.amax(0)
        none = torch.full_like(low, torch.inf)
        upper = none.scatter_reduce(1, leader, high, "amin")
        lower = (-none).scatter_reduce(1, leader, low, "amax")
        number = torch.arange(r, device=order.device).expand(batch, -1)
        above, below = (
            _owner(leader, mine == found.gather(1, leader), number) for mine, found in ((high, upper), (low, lower))
        )
        crossed = lower - upper
        size = torch.maximum(lower.abs(), upper.abs())
        equal = (crossed > 0) & (crossed <= TOLERANCE * size)  # both are met, by the verdict on either
        if bool((crossed > 0).any()):  # or bounds are zero but for rounding of what a point makes of the row
            reach = times(program.rows.abs(), Units.of(program).z)
            equal = equal | ((crossed > 0) & (crossed <= _ROUNDING * reach))
        lower = torch.where(equal, upper, lower)
        apart = (lower > upper).gather(1, leader)  # a contradiction: left as it is
        leading = leader == number
        keep = apart | leading
        upper = torch.where(apart, program.upper, torch.where(leading, upper, torch.inf))
        lower = torch.where(apart, program.lower, torch.where(leading, lower, -torch.inf))
        above, below = (torch.where(apart, number, owner) for owner in (above, below))
        rows = program.rows * keep.unsqueeze(2)
        return replace(program, rows=rows, lower=lower, upper=upper), Repeats(above, below, factor, leader)

    def apart(self, values: Tensor, scaled: bool) -> Tensor:
        """Multipliers, or active bounds, of the merged rows as those of the rows that the bounds are of."""
        owner = torch.where(values > 0, self.above, self.below)
        by = self.factor.gather(1, owner)
        values = values * by if scaled else values * by.sign().to(values.dtype)
        return torch.zeros_like(values).scatter_add(1, owner, values)

    def take(self, index: Tensor) -> Repeats:
        """Those of some of the programs."""
        return Repeats(self.above[index], self.below[index], self.factor[index], self.kind[index])

    def alike(self, on: Tensor) -> Tensor:
        """Which rows are of the kind of one of these, bool `(B, r)`."""
        some = torch.zeros_like(self.kind).scatter_reduce(1, self.kind, on.to(self.kind.dtype), "amax")
        return some.gather(1, self.kind) > 0


def _by_kind(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An order with rows of a kind together, where a new kind begins in it, and the sizes of the rows, with a sign."""
    generator = torch.Generator().manual_seed(0)
    probes = torch.rand(2, rows.shape[2], generator=generator, dtype=torch.float64, device="cpu").to(rows) + 0.5
    probes = probes * torch.where(torch.arange(rows.shape[2], device=rows.device) % 2 == 0, 1.0, -1.0)
    size = times(rows, probes[0].expand(len(rows), -1))
    empty = (rows == 0).all(2)
    size = torch.where(empty | (size == 0), 1.0, size)
    key = times(rows, probes[1].expand(len(rows), -1)) / size
    order = torch.where(empty, torch.inf, key).argsort(1)
    unit = (rows / size.unsqueeze(2)).gather(1, order.unsqueeze(2).expand(-1, -1, rows.shape[2]))
    far = (unit[:, 1:] - unit[:, :-1]).abs().amax(2) > _SAME * unit[:, 1:].abs().amax(2)
    fresh = torch.cat((torch.ones_like(empty[:, :1]), far | empty.gather(1, order)[:, 1:]), 1)
    return order, fresh, size


def _owner(leader: Tensor, mine: Tensor, number: Tensor) -> Tensor:
    """The first row of every kind whose bound is the one that counts; itself for all but the first."""
    count = leader.shape[1]
    found = torch.full_like(leader, count).scatter_reduce(1, leader, torch.where(mine, number, count), "amin")
    return torch.where((leader == number) & (found < count), found, number)

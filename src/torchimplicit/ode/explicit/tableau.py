"""Runge-Kutta methods as data: a tableau and its interpolant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    r"""The coefficients of an explicit Runge-Kutta method.

    With $k_i = f(t + c_i h, y + h \sum_{j<i} a_{ij} k_j)$ the step is $y + h \sum_i b_i k_i$, its error estimate
    $h \sum_i e_i k_i$, and the path inside the step $y + h \sum_i k_i \sum_d P_{id} \theta^{d+1}$.

    Attributes:
        c: nodes.
        a: rows of the matrix, the first of them empty.
        b: weights.
        e: weights of the error estimate; None for a method with fixed steps.
        interpolant: `P`, a row per stage; None for the cubic through both ends (Hermite).

    Raises:
        ValueError: the coefficients are no method's: says which row of them.
    """

    c: Row
    a: tuple[Row, ...]
    b: Row
    e: Row | None = None
    interpolant: tuple[Row, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be right for any field, such as weights that do not add up to 1."""
        stages, P = len(self.c), self.interpolant
        _agree("as many rows of a as nodes c", len(self.a), stages)
        for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)):
            _agree(f"in row {i} of a, one number for each stage before it", len(row), i)
            _agree(f"row {i} of a, to add up to its node c[{i}]", sum(row) + self.diagonal(i), node)
        _agree("as many weights b as nodes c", len(self.b), stages)
        _agree("the weights b, to add up to 1", sum(self.b), 1.0)
        if self.e is not None:
            _agree("as many weights e of the error estimate as nodes c", len(self.e), stages)
            _agree("the weights e of the error estimate, to add up to 0", sum(self.e), 0.0)
        if P is not None:
            _agree("as many rows of the interpolant as nodes c", len(P), stages)
            for i, (row, weight) in enumerate(zip(P, self.b, strict=True)):
                _agree(f"row {i} of the interpolant, to add up to b[{i}], where the step ends", sum(row), weight)

    def diagonal(self, stage: int) -> float:
        """What of its own slope a stage looks at: nothing, in an explicit method."""
        return 0.0

    @property
    def stages(self) -> int:
        """How many slopes a step needs."""
        return len(self.c)

    @cached_property
    def first_same_as_last(self) -> bool:
        """Whether the last slope is that at the end of the step, so that the next step need not evaluate it."""
        padded = self.a[-1] + (0.0,) * (len(self.b) - len(self.a[-1]))
        return self.c[-1] == 1.0 and padded == self.b and len(self.c) > 1


def _agree(what: str, got: float, expected: float) -> None:
    """Refuses a sum of coefficients, or a count of them, that is another; rounding of published decimals may be."""
    if not abs(got - expected) <= 1e-12 * max(1.0, abs(expected)):
        raise ValueError(f"Tableau: expected {what}: {expected}, got {got}")


class Weights(NamedTuple):
    """A tableau's nodes, in a row and in a column, and its interpolant as tensors."""

    c: Tensor
    column: Tensor
    interpolant: Tensor | None


def combine(y: Tensor, row: Row, increments: Sequence[Tensor]) -> Tensor:
    """`y` and a weighted sum of increments, of like shapes: an operation for every weight that is not zero."""
    for weight, increment in zip(row, increments, strict=True):
        y = y if weight == 0.0 else torch.add(y, increment, alpha=weight)
    return y


@lru_cache(maxsize=64)
def weights(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> Weights:
    """The coefficients in a dtype, on a device."""
    interpolant = None if tableau.interpolant is None else _kept(tableau.interpolant, dtype, device)
    c = _kept(tableau.c, dtype, device)
    return Weights(c, c.unsqueeze(1), interpolant)


class Columns(NamedTuple):
    """For every stage the weights of its increment in the sums that want it, in front of a state's dimensions.

    Attributes:
        sums: how many sums there are.
        points: of the first stage, in states.
        estimates: of the first stage, in estimates of the error.
        later: of the stages behind it.
    """

    sums: int
    points: Tensor
    estimates: Tensor
    later: tuple[Tensor, ...]


@lru_cache(maxsize=64)
def columns(tableau: Tableau, also: tuple[Row, ...], dims: int, dtype: torch.dtype, device: torch.device) -> Columns:
    """The weights of increments in the sums that a step needs.

    The sums are the states of the second stage, the third, ..., at the end of the step, and estimates of its error; the
    first stage has a part in all, each later one in a row less.

    Args:
        tableau: the method.
        also: weights of more estimates.
        dims: of the states.
        dtype: of the states.
        device: of the states.
    """
    estimates = (*(() if tableau.e is None else (tableau.e,)), *also)
    rows = (*tableau.a[1:], *(() if tableau.first_same_as_last else (tableau.b,)), *estimates)
    first, *later = (
        _kept(tuple(row[i] if i < len(row) else 0.0 for row in rows[i:]), dtype, device).view(-1, *(1,) * dims)
        for i in range(tableau.stages)
    )
    points = len(rows) - len(estimates)
    return Columns(len(rows), first[:points], first[points:], tuple(later))


def _kept(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    made = torch.tensor(values, dtype=dtype, device=device)
    return transforms.unwrapped(made)  # kept for longer than the transform lasts that may surround this

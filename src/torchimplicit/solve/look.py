"""An iterate as a step has led to it, and as it may be claimed to be a solution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Start(NamedTuple):
    """An iterate and its residual, `(B, n)` each."""

    z: Tensor
    residual: Tensor


class Look(NamedTuple):
    """What a step has led to.

    Attributes:
        z: the iterate, with its graph, `(B, n)`.
        residual: there, `(B, n)`.
        size: its norm, `(B,)`.
        energy: of a method that goes down, `(B,)`; None for others.
        moves: of every unknown, as parts of the largest value that it has had, `(B, n)`.
        move: the largest of these; infinite at the start, `(B,)`.
        low: what rounding alone may leave of the residual, `(B,)`.
    """

    z: Tensor
    residual: Tensor
    size: Tensor
    energy: Tensor | None
    moves: Tensor
    move: Tensor
    low: Tensor


class Claim(NamedTuple):
    """Iterates that may be solutions, each as it was when that was claimed.

    Attributes:
        step: of which they are, `(B,)`.
        z: the iterates, `(B, n)`.
        residual: there, `(B, n)`.
        size: its norm, `(B,)`.
        move: the largest part of itself by which an unknown has come there, `(B,)`.
        largest: the largest size that each unknown has had, `(B, n)`.
        highest: the largest size that each residual has had, `(B, n)`.
    """

    step: Tensor
    z: Tensor
    residual: Tensor
    size: Tensor
    move: Tensor
    largest: Tensor
    highest: Tensor

    def where(self, which: Tensor, other: Claim) -> Claim:
        """This one for some samples `(B,)`, another for the rest."""
        column = which.unsqueeze(1)
        pairs = zip(self, other, strict=True)
        return Claim(*(torch.where(column if one.dim() == 2 else which, one, two) for one, two in pairs))

    def take(self, rows: Tensor) -> Claim:
        """That of some samples."""
        return Claim(*(part[rows] for part in self))

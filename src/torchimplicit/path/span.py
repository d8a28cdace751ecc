"""A stretch of time that a step leads through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Where a step of every sample starts, where it stops, and its size, `(B,)` each.

    Its number, from the start of the path, says which of the steps it is: the noise of a stochastic one is found by it.
    The root of its size, `(1, 1)` of the state's dtype, is there where steps are known beforehand.
    """

    start: Tensor
    stop: Tensor
    h: Tensor
    number: int = 0
    root: Tensor | None = None

    @classmethod
    def of(cls, start: Tensor, stop: Tensor, number: int = 0) -> Span:
        """From one time to another."""
        return cls(start, stop, stop - start, number)

    def at(self, theta: Tensor | float) -> Tensor:
        """Times at parts of it, from 0 to 1, never beyond its ends: `start + part * h` may be, by a rounding."""
        return torch.lerp(self.start, self.stop, theta)

    def back(self) -> Span:
        """The same backward."""
        return Span(self.stop, self.start, -self.h, self.number)

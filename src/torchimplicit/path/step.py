"""What a step of any method finds."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Interpolant(Protocol):
    """The path inside a step."""

    def at(self, part: Tensor, samples: Tensor) -> Tensor:
        """States `(M, n)` of these samples `(M,)` at these parts of the step, from 0 to 1, `(M,)`."""
        ...

    def series(self, part: Tensor, samples: Tensor, order: int) -> Tensor:
        """States and their first derivatives by time up to this order, side by side, `(M, (1 + order) n)`.

        Smooth in `part` at the end of the step too, where `at` gives the very state that the step has found.
        """
        ...


class Stepped(NamedTuple):
    """What a step found.

    Attributes:
        y: the state at its end, `(B, n)`.
        error: the estimate of its error, `(B, n)`; None for fixed steps.
        slope: the slope at its end, where the method knows it, `(B, n)`; None otherwise.
        inside: the path between both ends.
    """

    y: Tensor
    error: Tensor | None
    slope: Tensor | None
    inside: Interpolant

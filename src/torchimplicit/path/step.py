"""What a step of any method finds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.path.graphs import StepGraph
from torchimplicit.path.interpolant import Interpolant


class Stepped(NamedTuple):
    """What a step found.

    Attributes:
        y: the state at its end, `(B, n)`.
        error: the estimate of its error, `(B, n)`; None for fixed steps.
        slope: the slope at its end, where the method knows it, `(B, n)`; None otherwise.
        inside: the path between both ends.
        failed: which samples' equations for the step were not solved, `(B,)`; None for a method without any.
        graph: of its evaluations; None where they are not kept.
    """

    y: Tensor
    error: Tensor | None
    slope: Tensor | None
    inside: Interpolant
    failed: Tensor | None = None
    graph: StepGraph | None = None

    def only(self, moved: Tensor) -> Stepped:
        """Of a step that but some samples make, `(B,)`: with a graph of theirs alone."""
        return self if self.graph is None else self._replace(graph=self.graph.only(moved))

    @property
    def fault(self) -> Tensor:
        """Of a step of a given size what the others have an error for, `(B,)`.

        0 where there is a state, infinite where none is finite, and 2 where a smaller step may have had one.
        """
        found = torch.where(self.y.isfinite().all(1), 0.0, math.inf).to(self.y.dtype)
        if self.failed is None:
            return found
        assert self.error is not None
        unsolved = torch.where(self.error.isfinite().all(1), 2.0, math.inf).to(self.y.dtype)
        return torch.where(self.failed, unsolved, found)

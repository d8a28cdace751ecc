"""What a step of any method finds."""

from __future__ import annotations

from typing import NamedTuple

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

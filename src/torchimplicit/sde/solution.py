"""A stochastic path as it is given back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchimplicit.path.solution import PathSolution


@dataclass(frozen=True)
class StochasticSolution(PathSolution):
    """A `PathSolution` of a stochastic path.

    Attributes:
        kl: with `prior=`, the divergence from it up to the output times, `(T, B)`: a sample's own, whose mean over
            paths is that of the processes. Infinite from the first step on that the prior cannot make.
    """

    kl: Tensor | None = None

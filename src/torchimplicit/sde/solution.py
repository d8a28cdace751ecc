"""A stochastic path as it is given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchimplicit.path.dense.dense_path import DensePath
from torchimplicit.path.report import PathReport
from torchimplicit.path.solution import PathSolution
from torchimplicit.sde.dense import StochasticPath


@dataclass(frozen=True)
class StochasticSolution(PathSolution):
    """A `PathSolution` of a stochastic path.

    Attributes:
        kl: with `prior=`, the divergence from it up to the output times, `(T, B)`: a sample's own, whose mean over
            paths is that of the processes. Infinite from the first step on that the prior cannot make.
        path: the solution as a function of time, with `dense=True`.
    """

    kl: Tensor | None = None
    path: StochasticPath | None = None


def solution_of(value: Any, report: PathReport, path: DensePath | None = None, **found: Any) -> StochasticSolution:
    """The solution of states `value`, with its path where that is wanted."""
    return StochasticSolution(value, report, path=None if path is None else StochasticPath(path), **found)

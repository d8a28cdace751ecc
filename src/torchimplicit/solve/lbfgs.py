"""The limited-memory BFGS method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import require_count
from torchimplicit.core.problem import Residual, Slope
from torchimplicit.core.tree import norm
from torchimplicit.linear import Jacobian
from torchimplicit.solve.linesearch import Place, descend, dot
from torchimplicit.solve.minimiser import Minimiser
from torchimplicit.solve.units import due, hessian_of, units_of


class Pair(NamedTuple):
    """A step and the change of the gradient along it, `(B, n)` each, and both times the inverse of their product.

    Where that is taken for zero, the pair says nothing: a sample may have fewer pairs than the others.
    """

    step: Tensor
    change: Tensor
    step_over: Tensor
    change_over: Tensor

    @staticmethod
    def of(step: Tensor, change: Tensor, weight: Tensor) -> Pair:
        """With the inverse of their product, `(B, 1)`."""
        return Pair(step, change, weight * step, weight * change)

    def without(self, which: Tensor) -> Pair:
        """Saying nothing of some samples, `(B, 1)` bool."""
        return self._replace(
            step_over=torch.where(which, 0, self.step_over), change_over=torch.where(which, 0, self.change_over)
        )


class Pairs:
    """The last pairs, oldest first. Never changed: a step makes another one.

    Args:
        pairs: as many as there are.
    """

    def __init__(self, pairs: tuple[Pair, ...] = ()):
        self.pairs = pairs

    def append(self, pair: Pair, memory: int) -> Pairs:
        """With a new pair, and no more than `memory`."""
        return Pairs((*self.pairs, pair)[-memory:])

    def forget(self, which: Tensor) -> Pairs:
        """Without the pairs of some samples, `(B,)` bool."""
        return Pairs(tuple(pair.without(which.unsqueeze(1)) for pair in self.pairs))

    def known(self, like: Tensor) -> Tensor:
        """Which samples have a pair, `(B,)` bool."""
        return torch.stack([torch.zeros_like(like), *((pair.step_over != 0).any(1) for pair in self.pairs)]).any(0)

    def inverse(self, vector: Tensor, scale: Tensor) -> Tensor:
        """What the pairs know of the inverse Hessian, times a vector, `(B, n)`: the recursion in two loops.

        Args:
            vector: `(B, n)`.
            scale: the diagonal of the inverse Hessian before all pairs, `(B, n)`.
        """
        weights = []
        for pair in reversed(self.pairs):
            weights.append((pair.step_over * vector).sum(1, keepdim=True))
            vector = torch.addcmul(vector, weights[-1], pair.change, value=-1)
        vector = scale * vector
        for pair, first in zip(self.pairs, reversed(weights), strict=True):
            second = (pair.change_over * vector).sum(1, keepdim=True)
            vector = torch.addcmul(vector, first - second, pair.step)
        return vector

    def take(self, rows: Tensor) -> Pairs:
        """Those of some samples."""
        return Pairs(tuple(Pair(*(part[rows] for part in pair)) for pair in self.pairs))

    def put(self, rows: Tensor, other: Pairs) -> None:
        """What was learnt of some samples alone is of no use once they have stopped."""


class LBFGSState(NamedTuple):
    """A place, who still moves, the last pairs, oldest first, and the inverse Hessian before them, a diagonal `(B, n)`.

    Also by how much energies are wrong beyond their rounding, `(B,)`, and how many steps there were.
    """

    z: Tensor
    residual: Tensor
    energy: Tensor
    active: Tensor
    pairs: Pairs
    scale: Tensor
    noise: Tensor
    age: int


@dataclass(frozen=True, kw_only=True)
class LBFGS(Minimiser):
    """L-BFGS, the default of `argmin`: a quasi-Newton descent whose Hessian is learnt from the last few steps.

    Goes down at every step, so it leaves maxima behind, and in general saddles. One evaluation a step, mostly. Every
    sample has its own line search and its own pairs. Up to 256 unknowns its steps do not depend on the units of the
    unknowns: those are taken from the Hessian's diagonal, at the start and ever more rarely. Beyond, scale them to one
    size. Where products with the Hessian are cheap and the energy is badly conditioned, `NewtonCG` needs fewer steps;
    for sums of squares `LevenbergMarquardt` does. Not for energies with kinks: there take `ProximalGradient`.
    `Unrolled` cannot differentiate through it.

    Source: J. Nocedal, Math. Comp. 35 (1980) 773; the scaling from D. Liu and J. Nocedal, Math. Program. 45 (1989) 503,
    M3 there, in units of a diagonal. A sample whose search fails forgets its pairs, and stays where it is when steepest
    descent fails, too.

    Args:
        memory: pairs to keep, >= 1; takes `2 * memory` states.
        trials: most lengths of a step to try, >= 1; an evaluation each.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    # Steps cost little beside looks, and those after a claim are full ones: no search is in vain.
    waits: ClassVar[int] = 2

    memory: int = 10
    trials: int = 20

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "memory", "trials")

    def init(self, problem: Slope, z: Tensor) -> LBFGSState:
        """The state at the start: the first step is the one that minimises the energy's second-order model."""
        place, active = self.begin(problem, z)
        return LBFGSState(*place, active, Pairs(), self._first_scale(problem, place), torch.zeros_like(place.energy), 0)

    def _first_scale(self, problem: Residual, place: Place) -> Tensor:
        """The inverse Hessian's diagonal in the unknowns' units, of its size along the gradient, `(B, n)`."""
        gradient, one = place.residual, (1 / norm(place.residual).clamp_min(1)).unsqueeze(1)
        if transforms.active():
            return one.expand_as(gradient)
        jacobian = Jacobian(problem, place.z)
        hessian = hessian_of(jacobian, place.z)
        square = torch.ones_like(gradient) if hessian is None else units_of(hessian).square()
        way = square * gradient
        bend = jacobian.rmatvec(way) if hessian is None else torch.bmm(way.unsqueeze(1), hessian.mT).squeeze(1)
        scale = square * (dot(gradient, way) / dot(way, bend).abs()).unsqueeze(1)
        return torch.where((scale > 0) & scale.isfinite(), scale, one)

    def step(self, problem: Slope, state: LBFGSState) -> LBFGSState:
        """One step along the quasi-Newton direction."""
        place, active, pairs = Place(*state[:3]), state.active, state.pairs
        direction = -pairs.inverse(place.residual, state.scale)
        moved, holds, noise = descend(problem, place, direction, active, self.trials, state.noise)

        step, change = moved.z - place.z, moved.residual - place.residual
        product = dot(step, change)
        ratio = product / dot(change, state.scale * change)
        info = torch.finfo(ratio.dtype)
        bends = (ratio > info.eps) & (product > info.tiny)
        scale = state.scale * torch.where(bends, ratio, 1).unsqueeze(1)
        lost, age = active & ~holds, state.age + 1
        if due(age):
            scale = self._first_scale(problem, moved)
        if bool(lost.any()):
            active = active & (holds | pairs.known(lost) | (step != 0).any(1))
            pairs = pairs.forget(lost)
            scale = torch.where(lost.unsqueeze(1), self._first_scale(problem, moved), scale)
        pair = Pair.of(step, change, torch.where(bends, 1 / product, 0).unsqueeze(1))
        return LBFGSState(*moved, active, pairs.append(pair, self.memory), scale, noise, age)

r"""Broyden's memory, compiled: on small states most of a step's time goes to launching its many small kernels.

Compiled code wants one shape whatever is known, and no factorisation. So the whole memory takes part from the start,
pairs of zeros where there are none yet, and the inverse of $M$ is kept in place of $M$: a pair that leaves and one that
comes change it by rank one each. Against the factorisation, on ten kinds of maps in two precisions, evaluations to
convergence differed by a step at most, but for maps that hardly converge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from torchimplicit.linear import LowRank
from torchimplicit.solve.secants import Secants


class CompiledSecants(Secants):
    """`Secants` with compiled arithmetic; `matrix` is the inverse of $M$.

    Args:
        z: see `Secants`.
        memory: see `Secants`.
    """

    def __init__(self, z: Tensor, memory: int):
        super().__init__(z, memory)
        self.places = torch.arange(memory, device=z.device).split(1)

    def propose(self, residual: Tensor) -> Tensor:
        """See `Secants.propose`; a new tensor."""
        step, weights = _compiled(_propose)(self.steps, self.gaps, self.matrix, residual)
        if not bool(torch.linalg.vector_norm(weights, torch.inf) <= self.reach):
            step = torch.where(self._keep_sound(weights, residual).unsqueeze(1), step, -residual)
        return step

    def append(self, step: Tensor, change: Tensor) -> None:
        """See `Secants.append`."""
        place = self.places[self.count % self.memory]
        _compiled(_learn)(self.steps, self.gaps, self.matrix, step, change, place)
        self.count += 1

    def inverse(self) -> LowRank:
        """See `Secants.inverse`."""
        right = torch.bmm(self.matrix, self.steps)
        return LowRank(self.gaps, torch.where(right.isfinite().all(2).all(1)[:, None, None], right, 0))


@cache
def _compiled(function: Callable) -> Callable:
    """The function compiled at its first use, for the compiler alone takes seconds to import."""
    return torch.compile(function, options={"cpp.threads": 1})  # several fight over loops as short as these


def _propose(steps: Tensor, gaps: Tensor, inverse: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The step `-H r` and the weights of the gaps in it."""
    products = (steps * residual.unsqueeze(1)).sum(2)
    weights = (inverse * products.unsqueeze(1)).sum(2)
    return -residual - (weights.unsqueeze(2) * gaps).sum(1), weights.unsqueeze(1)


def _learn(steps: Tensor, gaps: Tensor, inverse: Tensor, step: Tensor, change: Tensor, place: Tensor) -> None:
    """Replaces the pair at a place `(1,)`, and its row and column of `M`, in place."""
    gap = step - change
    steps.index_copy_(1, place, step.unsqueeze(1))
    gaps.index_copy_(1, place, gap.unsqueeze(1))
    here = torch.zeros_like(inverse[0, 0]).index_fill(0, place, 1.0)
    column, row = inverse.index_select(2, place), inverse.index_select(1, place)
    without = inverse - column * (row / row.index_select(2, place))
    below = -(gaps * step.unsqueeze(1)).sum(2)  # the row of M for the new pair, and its column
    above = (steps * change.unsqueeze(1)).sum(2)
    corner = above.index_select(1, place)
    corner = torch.where(corner == 0, 1.0, corner)  # a step of zero leaves M regular
    below, above = below * (1 - here), above * (1 - here)
    right = (without * above.unsqueeze(1)).sum(2)
    left = (below.unsqueeze(2) * without).sum(1)
    schur = corner - (below * right).sum(1, keepdim=True)
    inverse.copy_(without + (right - here).unsqueeze(2) * ((left - here) / schur).unsqueeze(1))

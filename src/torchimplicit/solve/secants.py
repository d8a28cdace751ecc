r"""The steps that Broyden's method has taken and what the residual did along them: its memory, as an inverse Jacobian.

With steps $s_i$, changes $y_i$ of the residual and gaps $d_i = s_i - y_i$, the Broyden matrix that starts at the
identity and is updated by these pairs in turn has the inverse

$$H = I + D^\top M^{-1} S, \qquad M_{ij} = s_i^\top y_j - [i \text{ newer than } j]\, s_i^\top s_j$$

(R. Byrd, J. Nocedal, R. Schnabel, Math. Program. 63 (1994) 129). Dropping the oldest pair leaves the matrix that the
others make, whose newest secant equation still holds. The usual memory, a ring of the terms $u_i v_i^\top$ of the
product form, loses that equation once it is full: on linear maps of radius 0.9 it then failed where this one converged.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from torchimplicit.core.tree import norm
from torchimplicit.linear import LowRank


class Secants:
    """The last `memory` pairs in preallocated buffers, overwritten in turn; for solves without grad.

    A step is computed right into its place: nothing is copied.

    Args:
        z: an iterate `(B, n)`, for size, dtype and device.
        memory: pairs to keep, >= 1.
    """

    def __init__(self, z: Tensor, memory: int):
        batch, width = z.shape
        self.memory, self.count = memory, 0
        info = torch.finfo(z.dtype)
        self.tiny, self.reach = info.tiny, info.eps**-0.5
        # Pairs of zeros and rows of the identity say nothing: a sample may have fewer pairs than the others.
        self.steps, self.gaps = z.new_zeros(2, batch, memory, width).unbind()
        self.matrix = torch.eye(memory, dtype=z.dtype, device=z.device).repeat(batch, 1, 1)
        self.retired: list[tuple[Tensor, Secants]] = []

    @property
    def known(self) -> int:
        """Pairs that the memory holds."""
        return min(self.count, self.memory)

    def propose(self, residual: Tensor) -> Tensor:
        """The quasi-Newton step `-H r`, `(B, n)`, computed into the place of the next pair.

        A sample whose weighted gaps are not finite, or so much longer than its residual that the step rests on digits
        that the dtype does not have, has come to a singular update: it forgets its pairs and takes the Picard step.
        """
        known = self.known
        step = self.proposed = self.steps[:, self.count % self.memory]
        if not known:
            return torch.neg(residual, out=step)
        row = residual.unsqueeze(1)
        weights = torch.linalg.solve_ex(self.matrix[:, :known, :known], self._products(self.steps, row).mT)[0].mT
        if not bool(torch.linalg.vector_norm(weights, torch.inf) <= self.reach):
            weights = torch.where(self._keep_sound(weights, residual)[:, None, None], weights, 0)
        return torch.neg(torch.baddbmm(row, weights, self.gaps[:, :known]).squeeze(1), out=step)

    def _keep_sound(self, weights: Tensor, residual: Tensor) -> Tensor:
        """Which samples can trust the weights `(B, 1, m)` of their gaps; the others' pairs are forgotten."""
        # Not by the weights alone: after a warm start short pairs of an earlier solve rightly have large ones.
        sizes = torch.linalg.vector_norm(self.gaps[:, : weights.shape[2]], dim=2)
        sound = (weights.squeeze(1).abs() * sizes).amax(1) <= self.reach * norm(residual)
        self._forget(~sound)
        return sound

    def append(self, step: Tensor, change: Tensor) -> None:
        """Takes the step that was made, `(B, n)`, and the change of the residual along it."""
        place = self.count % self.memory
        if step is not self.proposed:  # a line search has shortened it
            self.proposed.copy_(step)
        torch.sub(step, change, out=self.gaps[:, place])
        self.count += 1
        known = self.known
        torch.neg(self._products(self.gaps, step.unsqueeze(1)).squeeze(1), out=self.matrix[:, place, :known])
        column = self._products(self.steps, change.unsqueeze(1)).squeeze(1)
        torch.add(column, self.tiny, out=self.matrix[:, :known, place])  # a step of zero leaves M regular

    def _products(self, vectors: Tensor, row: Tensor) -> Tensor:
        """Inner products of a row `(B, 1, n)` with the known vectors, `(B, 1, m)`; the other way round is slow."""
        return torch.bmm(row, vectors[:, : self.known].mT)

    def _forget(self, which: Tensor) -> None:
        self.steps[which], self.gaps[which] = 0, 0
        self.matrix[which] = torch.eye(self.memory, dtype=self.matrix.dtype, device=self.matrix.device)

    def inverse(self) -> LowRank:
        """What the pairs know of the inverse Jacobian of the residual."""
        known = self.known
        steps, gaps, matrix = self.steps[:, :known], self.gaps[:, :known], self.matrix[:, :known, :known]
        right = torch.linalg.solve_ex(matrix, steps)[0]
        return LowRank(gaps, torch.where(right.isfinite().all(2).all(1)[:, None, None], right, 0))

    def fits(self, z: Tensor) -> bool:
        """Whether these are pairs of iterates such as this one, `(B, n)`."""
        batch, _, width = self.steps.shape
        return (batch, width) == z.shape and (self.steps.dtype, self.steps.device) == (z.dtype, z.device)

    def take(self, rows: Tensor) -> Secants:
        """A copy for some of the samples."""
        taken = copy.copy(self)
        taken.steps, taken.gaps, taken.matrix = self.steps[rows], self.gaps[rows], self.matrix[rows]
        taken.retired = []
        return taken

    def put(self, rows: Tensor, other: Secants) -> None:
        """Puts back what `take` gave, in its later state."""
        other.settle()
        self.count = max(self.count, other.count)
        self.steps[rows], self.gaps[rows], self.matrix[rows] = other.steps, other.gaps, other.matrix

    def retire(self, rows: Tensor) -> None:
        """Sets aside the pairs of samples that have stopped; those still to come are made of rounding."""
        self.retired.append((rows, self.take(rows)))

    def settle(self) -> None:
        """Gives the samples that have stopped their pairs of then."""
        retired, self.retired = self.retired, []
        for rows, pairs in retired:
            self.put(rows, pairs)


class SecantTape:
    """The same by plain out-of-place operations, for autograd to follow.

    Args:
        memory: pairs to keep, >= 1.
    """

    def __init__(self, memory: int):
        self.memory = memory
        self.steps: list[Tensor] = []
        self.gaps: list[Tensor] = []

    def propose(self, residual: Tensor) -> Tensor:
        """See `Secants.propose`."""
        if not self.steps:
            return -residual
        with torch.no_grad():
            weights, gaps = self._weights(residual)
            longest = (weights.squeeze(2).abs() * torch.linalg.vector_norm(gaps, dim=2)).amax(1)
            sound = longest <= torch.finfo(gaps.dtype).eps ** -0.5 * norm(residual)
        if not bool(sound.all()):  # forgotten before the solve: zero cotangents do not come through a singular one
            self.steps, self.gaps = (
                [torch.where(sound[:, None], vector, 0) for vector in vectors] for vectors in (self.steps, self.gaps)
            )
        weights, gaps = self._weights(residual)
        return -residual - torch.bmm(weights.mT, gaps).squeeze(1)

    def _weights(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The weights `(B, m, 1)` of the gaps `(B, m, n)` in the step, and these."""
        steps, gaps = torch.stack(self.steps, dim=1), torch.stack(self.gaps, dim=1)
        matrix = torch.triu(torch.bmm(steps, steps.mT)) - torch.bmm(steps, gaps.mT)
        matrix = matrix + torch.finfo(matrix.dtype).tiny * torch.eye(
            len(self.steps), dtype=matrix.dtype, device=matrix.device
        )
        return torch.linalg.solve_ex(matrix, torch.bmm(steps, residual.unsqueeze(2)))[0], gaps

    def append(self, step: Tensor, change: Tensor) -> None:
        """See `Secants.append`."""
        self.steps = [*self.steps, step][-self.memory :]
        self.gaps = [*self.gaps, step - change][-self.memory :]

r"""The past residuals that Anderson acceleration combines.

The weights that sum to one and make the combined residual smallest are $\alpha = M^{-1} 1 / (1^\top M^{-1} 1)$, with
$M$ the Gram matrix of the residuals, its diagonal enlarged by the ridge. (The bordered system with a row and column of
ones has the same solution, but elimination in it subtracts the large entries of $M$ from one another: in float32 that
cost a quarter more steps.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor


class Ring:
    """The last `window` residuals and targets in preallocated buffers, overwritten in turn; for solves without grad.

    A target is the (damped) Picard step from its iterate. Residuals are evaluated right into `slot`, targets computed
    right into their place: nothing is copied.

    Args:
        z: an iterate `(B, n)`, for size, dtype and device.
        window: how many to keep, >= 2.
        ridge: relative regularisation; the diagonal is multiplied by `1 + ridge`.
    """

    def __init__(self, z: Tensor, window: int, ridge: float):
        batch, width = z.shape
        self.window, self.count = window, 0
        self.ridge, self.tiny = _regularisation(ridge, window, z)
        self.residuals, self.targets = z.new_empty(2, batch, window, width).unbind()
        self.ones = z.new_ones(batch, window, 1)
        self._look()

    def _look(self) -> None:
        """Views of the buffers, made once."""
        self.slots, self.target_slots = self.residuals.unbind(1), self.targets.unbind(1)
        self.columns = self.residuals.mT

    @property
    def slot(self) -> Tensor:
        """Where the next residual shall be written, `(B, n)`."""
        return self.slots[self.count % self.window]

    def append(self, z: Tensor, residual: Tensor, damping: float) -> Tensor:
        """Takes an iterate whose residual stands in `slot`; returns its target, valid until it is overwritten."""
        target = torch.sub(z, residual, alpha=damping, out=self.target_slots[self.count % self.window])
        self.count += 1
        return target

    def resume(self, residuals: Sequence[Tensor], targets: Sequence[Tensor], residual: Tensor, count: int) -> Tensor:
        """Goes on where somebody else has come to after `count` steps.

        Args:
            residuals: what would have been appended last, oldest first, `(B, n)` each.
            targets: of the same.
            residual: the next one, `(B, n)`.
            count: how many would have been appended.

        Returns:
            That one, in its slot.
        """
        self.count = count
        for age, (past, target) in enumerate(zip(reversed(residuals), reversed(targets), strict=True), 1):
            place = (count - age) % self.window
            self.slots[place].copy_(past)
            self.target_slots[place].copy_(target)
        return self.slot.copy_(residual)

    def take(self, rows: Tensor) -> Ring:
        """The history of some of the samples."""
        taken = copy.copy(self)
        taken.residuals, taken.targets, taken.ones = self.residuals[rows], self.targets[rows], self.ones[rows]
        taken._look()
        return taken

    def combine(self) -> Tensor:
        """The weighted sum of the targets, `(B, n)`."""
        residuals, columns, targets, ones = self.residuals, self.columns, self.targets, self.ones
        tiny, ridge, known = self.tiny, self.ridge, self.count
        if known < self.window:
            residuals, columns, targets = residuals[:, :known], columns[:, :, :known], targets[:, :known]
            ones, tiny, ridge = ones[:, :known], tiny[:known, :known], ridge[:known, :known]
        return _combine(torch.baddbmm(tiny, residuals, columns).mul_(ridge), ones, targets)


class Tape:
    """The same by plain out-of-place operations, for autograd to follow.

    Args:
        window: how many to keep.
        ridge: see `Ring`.
    """

    slot = None

    def __init__(self, window: int, ridge: float):
        self.window, self.ridge, self.count = window, ridge, 0
        self.regularisation: tuple[Tensor, Tensor] | None = None
        self.residuals: list[Tensor] = []
        self.targets: list[Tensor] = []

    def append(self, z: Tensor, residual: Tensor, damping: float) -> Tensor:
        """See `Ring.append`."""
        self.residuals = [*self.residuals, residual][-self.window :]
        self.targets = [*self.targets, torch.sub(z, residual, alpha=damping)][-self.window :]
        self.count += 1
        return self.targets[-1]

    def combine(self) -> Tensor:
        """See `Ring.combine`."""
        residuals = torch.stack(self.residuals, dim=1)
        known = residuals.shape[1]
        if self.regularisation is None or len(self.regularisation[0]) != known:
            self.regularisation = _regularisation(self.ridge, known, residuals)
        ridge, tiny = self.regularisation
        gram = torch.baddbmm(tiny, residuals, residuals.mT) * ridge
        return _combine(gram, torch.ones_like(gram[:, :, :1]), torch.stack(self.targets, dim=1))


def _regularisation(ridge: float, window: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Elementwise scale and shift that regularise the Gram matrix, `(window, window)` each; the shift comes first.

    The factor of the diagonal is never so near one that more residuals than unknowns are singular; the addition keeps
    residuals of zero solvable, whose NaN would reach a gradient even by a zero cotangent.
    """
    info = torch.finfo(like.dtype)
    identity = torch.eye(window, dtype=like.dtype, device=like.device)
    return 1 + max(ridge, 10 * info.eps) * identity, info.tiny * identity


def _combine(gram: Tensor, ones: Tensor, targets: Tensor) -> Tensor:
    weights = torch.linalg.solve_ex(gram, ones)[0].mT
    return torch.bmm(weights / weights.sum(2, keepdim=True), targets).squeeze(1)

"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual
from torchimplicit.solve.history import write
from torchimplicit.solve.loop import Solver, require


class AndersonState(NamedTuple):
    """Iterate and residual `(B, n)`, their past, and the Gram matrix of the past residuals.

    `residuals` and `targets` are `(B, window, n)` rings; a target is the undamped or damped Picard step from its iterate.
    """

    z: Tensor
    residual: Tensor
    residuals: Tensor
    targets: Tensor
    gram: Tensor
    count: int


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    r"""Anderson acceleration (type II), the default for equilibrium models.

    Takes the weights, summing to one, that make the weighted sum of the last `window` residuals smallest, and goes to
    the same weighted sum of their Picard steps. With the Gram matrix $M = R R^\top$ of the residuals the weights are
    $\alpha = M^{-1} 1 / (1^\top M^{-1} 1)$. One evaluation and one new row of $M$ a step. Equivalent to GMRES on linear
    maps, without its global safety: `Newton` converges on maps that expand in many directions.

    The ridge is relative to each residual's own size, $M + \rho\,\mathrm{diag}(M)$ (and never below the dtype's
    rounding), so acceleration does not fade as the residuals shrink; an absolute ridge would average instead.

    Source: D. G. Anderson, J. ACM 12 (1965) 547; H. Walker and P. Ni, SIAM J. Numer. Anal. 49 (2011) 1715, eq. 2.2.

    Args:
        window: residuals to combine, >= 1; 1 is Picard iteration. Memory: `2 * window` states.
        damping: factor of the residual in the step, in (0, 2]; 1 is undamped.
        ridge: relative regularisation of the Gram matrix, >= 0.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    window: int = 6
    damping: float = 1.0
    ridge: float = 1e-10

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "window", isinstance(self.window, int) and self.window >= 1, "an integer >= 1")
        require(self, "damping", 0 < self.damping <= 2, "a number in (0, 2]")
        require(self, "ridge", self.ridge >= 0, "a number >= 0")

    def init(self, problem: Residual, z: Tensor) -> AndersonState:
        """The state at the start; allocates the history."""
        batch, width = z.shape
        window = min(self.window, self.max_steps) or 1
        residuals, targets = z.new_empty(2, batch, window, width).unbind() if window > 1 else (z, z)
        gram = z.new_zeros(batch, window, window)
        return AndersonState(z, problem(z), residuals, targets, gram, 0)

    def step(self, problem: Residual, state: AndersonState) -> AndersonState:
        """One accelerated step."""
        z, residual, residuals, targets, gram, count = state
        target = torch.sub(z, residual, alpha=self.damping)
        window = gram.shape[1]
        if window == 1:
            return AndersonState(target, problem(target), residuals, targets, gram, count + 1)
        slot, filled = count % window, min(count + 1, window)
        residuals, targets = write(residuals, slot, residual), write(targets, slot, target)
        gram = self._add_row(gram, residual, residuals[:, :filled], slot)
        if filled == 1:
            z = target
        else:
            z = torch.bmm(_weights(gram[:, :filled, :filled]).unsqueeze(1), targets[:, :filled]).squeeze(1)
        return AndersonState(z, problem(z), residuals, targets, gram, count + 1)

    def _add_row(self, gram: Tensor, residual: Tensor, residuals: Tensor, slot: int) -> Tensor:
        """The Gram matrix with the row and column of the newest residual in their slot."""
        info = torch.finfo(gram.dtype)
        filled = residuals.shape[1]
        row = torch.bmm(residual.unsqueeze(1), residuals.mT).squeeze(1)
        if filled < gram.shape[1]:
            row = torch.nn.functional.pad(row, (0, gram.shape[1] - filled))
        ridge = max(self.ridge, info.eps)
        diagonal = torch.add(row[:, slot] * (1 + ridge), info.tiny)  # tiny: a residual of exactly zero stays solvable
        row = write(row, slot, diagonal)
        return write(write(gram, slot, row), slot, row, dim=2)


def _weights(gram: Tensor) -> Tensor:
    """Weights `(B, k)` that sum to one and minimise the norm of the combined residual, from the Gram matrix `(B, k, k)`."""
    ones = gram.new_ones(()).expand(gram.shape[0], gram.shape[1], 1)
    raw = torch.linalg.solve_ex(gram, ones)[0].squeeze(2)
    return raw / raw.sum(1, keepdim=True)

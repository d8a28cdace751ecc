"""The truncated Neumann series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.core.status import Status
from torchimplicit.core.tree import norm
from torchimplicit.linear.report import LinearReport
from torchimplicit.linear.solver import LinearResult, LinearSolver, Product


@dataclass(frozen=True, kw_only=True)
class Neumann(LinearSolver):
    r"""Approximates $A^{-1} b$ by $\sum_{k<K} (I - A)^k b$, `terms` $= K$.

    An approximation on purpose: for $A = I - J$ with $\|J\| = \rho < 1$ its relative error is at most $\rho^K$, a bias
    that stays in the gradient. The report's residual says how large it is; the status is `CONVERGED` while the terms
    shrink and `DIVERGED` when the last is no smaller than the first (no contraction: the sum means nothing).
    One term is the gradient of Jacobian-free backpropagation. Where exactness matters use `GMRES`, at a similar cost.

    Args:
        terms: terms of the series, >= 1. Costs one product each.
    """

    terms: int = 10

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "terms")

    def run(self, product: Product, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """Sums the series, whatever `rtol`; the last product gives the residual, which is the first term left out."""
        x, term = b, b - product(b)
        for _ in range(self.terms - 1):
            x = x + term
            term = term - product(term)
        first, last = norm(b), norm(term)
        finite, shrinks = last.isfinite(), (last < first) | (first == 0)
        status = Status.CONVERGED.where(shrinks, Status.DIVERGED)
        status = Status.NON_FINITE.unless(finite, status)
        residual = torch.where(finite, last, first) / b.shape[1] ** 0.5
        steps = torch.full_like(status, self.terms)
        return LinearResult(x, LinearReport(status, steps, residual, self.terms, "linear solve"))

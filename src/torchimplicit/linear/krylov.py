"""Krylov methods: GMRES, BiCGStab, conjugate gradients. Batched, every sample on its own, never a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.tree import norm
from torchimplicit.linear.solver import LinearResult, LinearSolver, Product, Progress

LITTLE = 0.999  # a GMRES cycle that leaves more than this of the residual counts as stagnation


@dataclass(frozen=True, kw_only=True)
class _Krylov(LinearSolver):
    rtol: float = 1e-4
    max_steps: int = 100

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        name = type(self).__name__
        if not self.rtol > 0:
            raise ValueError(f"{name}(rtol={self.rtol!r}): expected a number > 0")
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ValueError(f"{name}(max_steps={self.max_steps!r}): expected an integer >= 1")


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """Inner product of every sample's vectors, as a column `(B, 1)`."""
    return torch.bmm(u.unsqueeze(1), v.unsqueeze(2)).squeeze(2)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is zero where the denominator is."""
    return torch.where(denominator == 0, 0, numerator / denominator)


@dataclass(frozen=True, kw_only=True)
class GMRES(_Krylov):
    """Restarted GMRES with reorthogonalised Arnoldi vectors, for any nonsingular operator. The default.

    Smallest residual over the Krylov space, one product a step; never breaks down before the solution is reached.
    Source: Y. Saad and M. Schultz, SIAM J. Sci. Stat. Comput. 7 (1986) 856.

    Args:
        rtol: a sample has converged when `|b - A x| <= rtol |b|`.
        restart: steps between restarts; memory is `restart + 1` vectors per sample.
        max_steps: limit of products.
    """

    restart: int = 10

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        if not isinstance(self.restart, int) or self.restart < 1:
            raise ValueError(f"GMRES(restart={self.restart!r}): expected an integer >= 1")

    def run(self, product: Product, b: Tensor) -> LinearResult:
        """Cycles of Arnoldi steps from `x = 0`."""
        progress = Progress(b, self.rtol)
        x, residual, done, products = torch.zeros_like(b), b, 0, 0
        going = bool(progress.running.any())
        while going and done < self.max_steps:
            cycle = _Cycle(residual, min(self.restart, self.max_steps - done, b.shape[1]))
            before = progress.running
            for _ in range(cycle.length):
                going = progress.update(done + cycle.steps + 1, *cycle.advance(product, progress.running))
                if not going:
                    break
            done, products = done + cycle.steps, products + cycle.steps
            x = torch.where(before.unsqueeze(1), x + cycle.correction(), x)
            if going and done < self.max_steps:
                residual = b - product(x)
                products += 1
                size = norm(residual)
                going = progress.update(done, size, size > LITTLE * cycle.beta)
        return progress.result(x, products)


class _Cycle:
    """One cycle of GMRES: an Arnoldi basis, the Hessenberg matrix, and the residual norm of every sample.

    The residual norm follows from the vector `null` that is orthogonal to the Hessenberg matrix's columns: it is
    `beta / |null|` when `null[0] = 1`. One dot product a step replaces the usual sequence of Givens rotations.
    All shapes are fixed at the full cycle length, so that a sample's rounding does not depend on when others stop.
    """

    def __init__(self, residual: Tensor, length: int):
        self.length, self.steps = length, 0
        batch, width = residual.shape
        self.beta = norm(residual)
        self.basis = residual.new_zeros(batch, length + 1, width)
        self.basis[:, 0] = residual * _over(self.beta.new_ones(()), self.beta).unsqueeze(1)
        self.hessenberg = residual.new_zeros(batch, length + 1, length)
        self.null = residual.new_zeros(batch, length + 1)
        self.null[:, 0] = 1

    def advance(self, product: Product, running: Tensor) -> tuple[Tensor, Tensor]:
        """One Arnoldi step; residual norms `(B,)` and where the Krylov space is exhausted `(B,)`."""
        j = self.steps
        w = product(self.basis[:, j])
        size = norm(w)
        basis = self.basis[:, : j + 1]
        column = torch.bmm(w.unsqueeze(1), basis.mT)
        w = torch.baddbmm(w.unsqueeze(1), column, basis, alpha=-1)
        again = torch.bmm(w, basis.mT)  # twice is enough
        w = torch.baddbmm(w, again, basis, alpha=-1).squeeze(1)
        column = (column + again).squeeze(1)
        length = norm(w)
        exhausted = length <= 4 * torch.finfo(w.dtype).eps * size
        length = torch.where(exhausted, 0, length)
        torch.mul(w, _over(length.new_ones(()), length).unsqueeze(1), out=self.basis[:, j + 1])
        self.hessenberg[:, : j + 1, j] = torch.where(running.unsqueeze(1), column, 0)
        # A stopped sample's later columns are unit vectors below its own block: their coefficients come out as zero.
        self.hessenberg[:, j + 1, j] = torch.where(running, length, 1)
        leak = (self.null[:, : j + 1] * column).sum(1)
        null = -_over(leak, length)
        self.null[:, j + 1] = null
        self.steps += 1
        residual = self.beta / norm(self.null[:, : j + 2])
        # Exhausted: the residual is zero unless the operator is singular on the space (leak = 0 as well).
        solved = exhausted & (leak.abs() > torch.finfo(w.dtype).eps * size)
        return torch.where(solved, 0, residual), exhausted

    def correction(self) -> Tensor:
        """The step `(B, n)` that reaches every sample's smallest residual."""
        for j in range(self.steps, self.length):  # columns that were not reached
            self.hessenberg[:, j + 1, j] = 1
        q, r = torch.linalg.qr(self.hessenberg)
        target = q[:, 0].unsqueeze(2) * self.beta[:, None, None]
        weights = torch.linalg.solve_triangular(r, target, upper=True).mT
        return torch.bmm(weights.nan_to_num(0, 0, 0), self.basis[:, :-1]).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class BiCGStab(_Krylov):
    """Stabilised bi-conjugate gradients: any operator in a few vectors of memory, two products a step.

    Less smooth than `GMRES` and able to break down (reported as stagnated): for states too large for a Krylov basis.
    Source: H. van der Vorst, SIAM J. Sci. Stat. Comput. 13 (1992) 631.

    Args:
        rtol: a sample has converged when `|b - A x| <= rtol |b|`; checked against the true residual at the end.
        max_steps: limit of steps, of two products each.
    """

    def run(self, product: Product, b: Tensor) -> LinearResult:
        """Iterates from `x = 0`."""
        progress = Progress(b, self.rtol)
        x, r, shadow = torch.zeros_like(b), b, b
        p, rho = r, _dot(shadow, r)
        going, step = bool(progress.running.any()), 0
        while going and step < self.max_steps:
            step += 1
            v = product(p)
            alpha = _over(rho, _dot(shadow, v))
            s = r - alpha * v
            t = product(s)
            omega = _over(_dot(t, s), _dot(t, t))
            x = progress.hold(x + alpha * p + omega * s, x)
            r = s - omega * t
            rho, previous = _dot(shadow, r), rho
            beta = _over(rho, previous) * _over(alpha, omega)
            p = r + beta * (p - omega * v)
            broken = ((alpha == 0) | (omega == 0)).squeeze(1)
            going = progress.update(step, norm(r), broken)
        return progress.verified(x, b, product, 2 * step)


@dataclass(frozen=True, kw_only=True)
class CG(_Krylov):
    """Conjugate gradients, for symmetric positive definite (or negative definite) operators only.

    The Hessian of an energy at a minimum, or `I - J` of a gradient map. On other operators it fails, and says so: the
    claimed residual is checked against the true one.
    Source: M. Hestenes and E. Stiefel, J. Res. Natl. Bur. Stand. 49 (1952) 409.

    Args:
        rtol: a sample has converged when `|b - A x| <= rtol |b|`.
        max_steps: limit of steps, of one product each.
    """

    def run(self, product: Product, b: Tensor) -> LinearResult:
        """Iterates from `x = 0`."""
        progress = Progress(b, self.rtol)
        x, r, p = torch.zeros_like(b), b, b
        rho = _dot(r, r)
        going, step = bool(progress.running.any()), 0
        while going and step < self.max_steps:
            step += 1
            w = product(p)
            curvature = _dot(p, w)
            alpha = _over(rho, curvature)
            x = progress.hold(x + alpha * p, x)
            r = r - alpha * w
            rho, previous = _dot(r, r), rho
            p = r + _over(rho, previous) * p
            going = progress.update(step, norm(r), (curvature == 0).squeeze(1))
        return progress.verified(x, b, product, step)

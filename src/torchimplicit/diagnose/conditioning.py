r"""How a cell contracts and how well $I - J$ can be inverted, at one point: from all singular values, or estimated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.tree import norm
from torchimplicit.diagnose.arnoldi import largest_modulus, leading
from torchimplicit.linear import (
    CG,
    GMRES,
    IdentityMinus,
    Jacobian,
    LinearOperator,
    LinearSolver,
    eigenvalue_range,
    probe,
)

STEPS, RESTARTS, SETTLED = 20, 2, 1e-3  # of the estimates of large operators
INVERSE_STEPS = 6  # as above for the inverse, of which every product is a linear solve
LANCZOS_STEPS = 100  # of the process that finds a monotonicity constant down to about 1e-4 of the norm
PATIENT = 2000  # products of the solves by CG and the references, where the operator is symmetric
SYMMETRIC = 100.0  # roundings up to which a product may differ from the transpose's
SOLVED = 1e-2  # relative residual up to which a solve of the inverse's estimate counts


@dataclass(frozen=True)
class Conditioning:
    """What is known of the Jacobian `J` of the cell and of `B = I - J`, per sample; NaN where they are not finite.

    Attributes:
        radius: spectral radius of `J`, `(B,)`.
        norm: largest singular value of `J`, `(B,)`: by which the cell contracts or expands Euclidean distances.
        largest: largest singular value of `B`, `(B,)`.
        smallest: smallest singular value of `B`, `(B,)`; zero where it cannot be told from that.
        monotone: smallest eigenvalue of `(B + B^T) / 2`, `(B,)`. Where it is positive, `B` is strongly monotone and
            `|B^{-1}| <= 1 / monotone`, however badly conditioned `B` is: for a convex layer, whose `B` is symmetric, it
            is the smallest singular value itself.
        exact: whether they come from the matrices; else they are estimates.
    """

    radius: Tensor
    norm: Tensor
    largest: Tensor
    smallest: Tensor
    monotone: Tensor
    exact: bool


def conditioning(jacobian: Jacobian, z: Tensor, dense: int) -> Conditioning:
    r"""Measures a residual's Jacobian $B = I - J$.

    Up to `dense` unknowns from the eigenvalues of $J$ and the singular values of $J$ and $B$. Beyond, by Arnoldi
    processes: on $J$ for the radius, on $J^\top J$ and $B^\top B$ for the largest singular values, which come out too
    small if anything (measured: by 1e-3 at most), and on $(B^\top B)^{-1}$ for the smallest one of $B$, which comes out
    too large if anything. There every product is two solves, by GMRES, or of a symmetric $B$ by CG; where they fail,
    the monotonicity constant takes its place, if that is positive. It comes from a Lanczos process on $(B + B^\top) /
    2$, of whose smallest Ritz value the length of the pair's residual is taken off.

    Args:
        jacobian: of the residual, at the point.
        z: the point, `(B, n)`.
        dense: most unknowns per sample for which the matrices are built.
    """
    if z.shape[1] <= dense:
        b = jacobian.dense(z)
        j = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - b
        values = _singular_values(b)
        monotone = _of_finite(torch.linalg.eigvalsh, 0.5 * (b + b.mT))[:, 0]
        return Conditioning(
            largest_modulus(j), _singular_values(j)[:, 0], values[:, 0], values[:, -1], monotone, exact=True
        )
    solver = (
        CG(rtol=1e-3, max_steps=PATIENT) if is_definite(jacobian, z) else GMRES(rtol=1e-3, restart=30, max_steps=300)
    )
    inverse = _Inverse(jacobian, solver)
    j = IdentityMinus(jacobian)
    radius, _ = leading(j, z, 2 * STEPS, RESTARTS, SETTLED)
    reciprocal, monotone = spectral_norm(inverse, z, 0, INVERSE_STEPS, 1), _monotone(jacobian, z)
    smallest = torch.where(inverse.failed, torch.where(monotone > 0, monotone, 0), 1 / reciprocal)
    return Conditioning(radius, spectral_norm(j, z, 0), spectral_norm(jacobian, z, 0), smallest, monotone, exact=False)


def is_definite(b: LinearOperator, z: Tensor) -> bool:
    """Whether an operator is symmetric, and nothing is seen that were not positive: then `CG` solves with it.

    Args:
        b: the operator.
        z: any `(B, n)` tensor of its dtype and device.
    """
    v = probe(z)
    product, transposed = b.matvec(v), b.rmatvec(v)
    play = SYMMETRIC * torch.finfo(z.dtype).eps * (norm(v) + norm(product))
    if not bool((norm(product - transposed) <= play).all()):
        return False
    return bool((eigenvalue_range(b.rmatvec, v, STEPS).lowest > 0).all())


def _monotone(b: LinearOperator, z: Tensor) -> Tensor:
    """The smallest eigenvalue of the symmetric part, in double precision, `(B,)`."""
    # Of the negative one the largest, whose Ritz pair's residual is what the process tells.
    found = eigenvalue_range(lambda v: -0.5 * (b.matvec(v) + b.rmatvec(v)), probe(z), LANCZOS_STEPS)
    return -(found.highest + found.play).double()


def spectral_norm(
    operator: LinearOperator, z: Tensor, dense: int, steps: int = STEPS, restarts: int = RESTARTS
) -> Tensor:
    """The largest singular value of an operator, in double precision, `(B,)`.

    Args:
        operator: the operator.
        z: any `(B, n)` tensor of its dtype and device.
        dense: most unknowns per sample for which its matrices are built; beyond, an estimate from below.
        steps: Arnoldi vectors between restarts of the estimate.
        restarts: most restarts of the estimate.
    """
    if z.shape[1] <= dense:
        return _singular_values(operator.dense(z))[:, 0]
    square, _ = leading(_Gram(operator), z, steps, restarts, SETTLED)
    return square.sqrt()


def _singular_values(matrices: Tensor) -> Tensor:
    """In double precision and decreasing, `(B, n)`; NaN for a matrix that is not finite."""
    return _of_finite(torch.linalg.svdvals, matrices)


def _of_finite(values: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Singular or eigenvalues of matrices, in double precision, `(B, n)`; NaN for a matrix that is not finite."""
    finite = matrices.isfinite().flatten(1).all(1)
    found = values(torch.where(finite[:, None, None], matrices, 0).double())
    return torch.where(finite.unsqueeze(1), found, torch.nan)


class Difference(LinearOperator):
    """`A - C`."""

    def __init__(self, a: LinearOperator, c: LinearOperator):
        """Wraps two operators."""
        self.a, self.c = a, c

    def matvec(self, v: Tensor) -> Tensor:
        """`A v - C v`."""
        return self.a.matvec(v) - self.c.matvec(v)

    def rmatvec(self, v: Tensor) -> Tensor:
        """`A^T v - C^T v`."""
        return self.a.rmatvec(v) - self.c.rmatvec(v)

    def dense(self, like: Tensor) -> Tensor:
        """The difference of the matrices."""
        return self.a.dense(like) - self.c.dense(like)


class _Gram(LinearOperator):
    """`A^T A`, whose largest eigenvalue is the square of the largest singular value of `A`."""

    def __init__(self, operator: LinearOperator):
        self.operator = operator

    def matvec(self, v: Tensor) -> Tensor:
        return self.operator.rmatvec(self.operator.matvec(v))


class _Inverse(LinearOperator):
    """`A^{-1}` by an iterative solver; notes for which samples a solve failed."""

    def __init__(self, operator: LinearOperator, solver: LinearSolver):
        self.operator, self.prepared = operator, solver.prepare(operator)
        self.failed = torch.tensor(False)

    def matvec(self, v: Tensor) -> Tensor:
        return self._noted(v, self.prepared.solve(v).x, self.operator.matvec)

    def rmatvec(self, v: Tensor) -> Tensor:
        return self._noted(v, self.prepared.solve_transpose(v).x, self.operator.rmatvec)

    def _noted(self, v: Tensor, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        self.failed = self.failed | ~(norm(v - product(x)) <= SOLVED * norm(v))
        return x

"""The Levenberg-Marquardt method for sums of squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.core.problem import Residual
from torchimplicit.core.tree import norm
from torchimplicit.linear import CG, LU, Jacobian, LinearOperator, LinearSolver
from torchimplicit.solve.linesearch import ROUNDINGS, Place, dot
from torchimplicit.solve.minimiser import Minimiser
from torchimplicit.solve.newton import DENSE


class LevenbergState(NamedTuple):
    """A place, who still moves, the damping and what it grows by when a step fails, `(B,)` each."""

    z: Tensor
    residual: Tensor
    energy: Tensor
    active: Tensor
    damping: Tensor
    growth: Tensor


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(Minimiser):
    r"""Levenberg-Marquardt, the default of `least_squares`: $(J^\top J + \mu I)\, s = -J^\top r$ for every sample.

    The damping $\mu$ follows how well the linear model has predicted the fall of $|r|^2 / 2$: small where it did
    (Gauss-Newton, quadratic convergence where the residuals vanish at the minimum), large where it did not (short steps
    of steepest descent). A step that does not lower the energy is not taken. It costs two evaluations and, with `LU()`,
    the Jacobian. Not for residuals that stay large and bend strongly: there it converges linearly, and `NewtonCG`,
    which takes the whole Hessian, is faster. The normal equations square the condition number of $J$.

    Source: K. Levenberg (1944), D. Marquardt (1963); the damping's rule from H. B. Nielsen, Damping parameter in
    Marquardt's method, IMM-REP-1999-05 (1999), equation 2.4.

    Args:
        damping: the first $\mu$, relative to the size of $J^\top J$ along the gradient; 0 is the Gauss-Newton method:
            full steps, whatever becomes of the energy.
        linear_solver: for a symmetric positive definite system; None takes `LU()` up to 256 unknowns per sample and
            `CG()` beyond.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    damping: float = 1e-3
    linear_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "damping", isinstance(self.damping, float | int) and 0 <= self.damping < 1e6, "a number >= 0")
        linear = self.linear_solver is None or isinstance(self.linear_solver, LinearSolver)
        require(self, "linear_solver", linear, "a LinearSolver such as LU() or CG(), or None")

    def init(self, problem: Residual, z: Tensor) -> LevenbergState:
        """The state at the start."""
        place, active = self.begin(problem, z)
        if getattr(problem, "terms", None) is None:
            raise TypeError(
                "solver=LevenbergMarquardt(): it needs the residuals of a sum of squares, got an energy; try "
                "least_squares(residuals, z0, ...), or LBFGS()"
            )
        product = Normal(Jacobian(problem.terms, z)).matvec(place.residual)  # type: ignore[attr-defined]
        problem.nfev += 1
        size = norm(product) / norm(place.residual).clamp_min(torch.finfo(z.dtype).tiny)
        return LevenbergState(*place, active, self.damping * size, torch.full_like(size, 2))

    def step(self, problem: Residual, state: LevenbergState) -> LevenbergState:
        """One damped Gauss-Newton step, taken where the energy falls."""
        place, damping = Place(*state[:3]), state.damping
        normal = Normal(Jacobian(problem.terms, place.z), damping)  # type: ignore[attr-defined]
        problem.nfev += 1
        linear_solver = self.linear_solver or (LU() if place.z.shape[1] <= DENSE else CG(rtol=1e-6))
        step = linear_solver.prepare(normal).solve(-place.residual).x
        z = place.z + step
        gradient = problem(z)
        trial = Place(z, gradient, problem.energy)  # type: ignore[attr-defined]

        predicted = 0.5 * (damping * dot(step, step) - dot(step, place.residual))
        ratio = (place.energy - trial.energy) / predicted
        # Near the minimum the energies' difference is rounding: there a smaller gradient decides.
        level = (trial.energy - place.energy).abs() <= ROUNDINGS * problem.eps * place.energy
        ratio = torch.where(level & (dot(gradient, gradient) < dot(place.residual, place.residual)), 1.0, ratio)
        if not self.damping:
            ratio = torch.ones_like(ratio)
        taken = (ratio > 0) & state.active
        shrink = (1 - (2 * ratio - 1) ** 3).clamp_min(1 / 3)
        damping = torch.where(taken, damping * shrink, damping * state.growth)
        growth = torch.where(taken, 2.0, 2 * state.growth)
        moved = trial.where(taken, place) if self.damping else trial
        active = state.active & (z != place.z).any(1)
        return LevenbergState(*moved, active, damping, growth)


class Normal(LinearOperator):
    r"""$J^\top J + c I$ with a shift for every sample.

    Args:
        jacobian: $J$, of the terms `(B, m)` by the state `(B, n)`.
        shift: $c$, `(B,)`; None is zero.
    """

    def __init__(self, jacobian: Jacobian, shift: Tensor | None = None):
        """Wraps a Jacobian."""
        self.jacobian, self.shift = jacobian, None if shift is None else shift.unsqueeze(1)

    def matvec(self, v: Tensor) -> Tensor:
        """`J^T J v + c v`."""
        product = self.jacobian.rmatvec(self.jacobian.matvec(v))
        return product if self.shift is None else torch.addcmul(product, self.shift, v)

    rmatvec = matvec

    def dense(self, like: Tensor) -> Tensor:
        """The matrices `(B, n, n)`, from as many products with the Jacobian as it has rows or columns, the fewer."""
        rows, columns = self.jacobian.value.shape[1], like.shape[1]
        if rows <= columns:
            jacobian = self.jacobian.dense(self.jacobian.value.detach())
        else:
            product = self.jacobian.matvec
            product(like)  # records what all products share
            basis = torch.eye(columns, dtype=like.dtype, device=like.device)
            jacobian = torch.vmap(lambda row: product(row.expand_as(like)), out_dims=2)(basis)
        normal = torch.bmm(jacobian.mT, jacobian)
        return normal if self.shift is None else normal + torch.diag_embed(self.shift.expand_as(like))

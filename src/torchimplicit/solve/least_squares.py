"""The Levenberg-Marquardt method for sums of squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number, require
from torchimplicit.core.problem import Slope
from torchimplicit.core.tree import norm
from torchimplicit.linear import CG, Jacobian, LinearOperator, LinearSolver
from torchimplicit.solve.ahead import DENSE
from torchimplicit.solve.linesearch import ROUNDINGS, Place, dot
from torchimplicit.solve.minimiser import Minimiser

SHRINK = 0.2  # of the damping at most, where a step has been predicted well (a third in the source: more steps)
RECORD = 16  # rows of a Jacobian whose products cost less than to record what the products with its columns share


class Linear(NamedTuple):
    """The terms whose squares the energy is half the sum of, `(B, m)`, and their Jacobians, `(B, m, n)`."""

    terms: Tensor
    matrix: Tensor

    def where(self, which: Tensor, other: Linear) -> Linear:
        """This one for some samples `(B,)`, another for the rest."""
        terms = torch.where(which[:, None], self.terms, other.terms)
        return Linear(terms, torch.where(which[:, None, None], self.matrix, other.matrix))

    def lengths(self) -> Tensor:
        """Those of the Jacobians' columns, `(B, n)`."""
        return torch.linalg.vector_norm(self.matrix, dim=1)


class LevenbergState(NamedTuple):
    """A place, who still moves, the damping and what it grows by when a step fails, `(B,)` each, and units `(B, n)`.

    The units are those that damping is in: the largest lengths that the columns of the Jacobian have had. Where that is
    built it is kept until a step is taken.
    """

    z: Tensor
    residual: Tensor
    energy: Tensor
    active: Tensor
    damping: Tensor
    growth: Tensor
    units: Tensor
    linear: Linear | tuple[()] = ()


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(Minimiser):
    r"""Levenberg-Marquardt, the default of `least_squares`: $(J^\top J + \mu D^2)\, s = -J^\top r$ for every sample.

    The damping $\mu$ follows how well the linear model has predicted the fall of $|r|^2 / 2$: small where it did
    (Gauss-Newton, quadratic convergence where the residuals vanish at the minimum), large where it did not (short steps
    of steepest descent). $D$ holds the largest lengths that the columns of $J$ have had, so the iterates do not depend
    on the units of the unknowns. A step that does not lower the energy is not taken. It costs an evaluation and the
    Jacobian, whose QR factorisation does not square its condition number. Not for residuals that stay large and bend
    strongly: there it converges linearly, and `NewtonCG`, which takes the whole Hessian, is faster.

    Beyond 256 unknowns, and with a `linear_solver`, the normal equations are solved instead, which square it, and $D$
    is the identity: there scale the unknowns to one size.

    Source: K. Levenberg (1944), D. Marquardt (1963); $D$ from J. More, The Levenberg-Marquardt algorithm, Lecture Notes
    in Mathematics 630 (1978) 105, equation 6.3; the damping's rule from H. B. Nielsen, Damping parameter in
    Marquardt's method, IMM-REP-1999-05 (1999), equation 2.4.

    Args:
        damping: the first $\mu$; 0 is the Gauss-Newton method: full steps, whatever becomes of the energy.
        linear_solver: for a symmetric positive definite system; None takes a QR factorisation up to 256 unknowns per
            sample and `CG()` beyond.
        rtol: see `Solver`; 1e-8, as convergence is fast at the end. What rounding does not allow is not asked for.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    rtol: float = 1e-8
    max_steps: int = 1000
    damping: float = 1e-2
    linear_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "damping", is_number(self.damping) and 0 <= self.damping < 1e6, "a number >= 0")
        linear = self.linear_solver is None or isinstance(self.linear_solver, LinearSolver)
        require(self, "linear_solver", linear, "a LinearSolver such as LU() or CG(), or None")

    def init(self, problem: Slope, z: Tensor) -> LevenbergState:
        """The state at the start."""
        place, active = self.begin(problem, z)
        if problem.terms is None:
            raise TypeError(
                "solver=LevenbergMarquardt(): it needs the residuals of a sum of squares, got an energy; try "
                "least_squares(residuals, z0, ...), or LBFGS()"
            )
        damping = torch.full_like(place.energy, self.damping)
        if self._factors(z):
            place, linear = _linearise(problem, z)
            return LevenbergState(*place, active, damping, torch.full_like(damping, 2), linear.lengths(), linear)
        product = Normal(Jacobian(problem.terms, z)).matvec(place.residual)
        problem.nfev += 1
        size = norm(product) / norm(place.residual).clamp_min(torch.finfo(z.dtype).tiny)
        return LevenbergState(*place, active, damping * size, torch.full_like(size, 2), torch.ones_like(z))

    def _factors(self, z: Tensor) -> bool:
        return self.linear_solver is None and z.shape[1] <= DENSE

    def step(self, problem: Slope, state: LevenbergState) -> LevenbergState:
        """One damped Gauss-Newton step, taken where the energy falls."""
        place, damping, units = Place(*state[:3]), state.damping, state.units
        step, noise = self._direct(problem, state)
        z = place.z + step
        if state.linear:
            trial, linear = _linearise(problem, z)
        else:
            trial, linear = Place(z, problem(z), problem.energy), ()

        scaled, slope = units * step, dot(step, place.residual)
        predicted = 0.5 * (damping * dot(scaled, scaled) - slope)
        ratio = (place.energy - trial.energy) / predicted
        # Near the minimum the energies' difference is rounding: there the slope along the step decides.
        level = (trial.energy - place.energy).abs() <= ROUNDINGS * problem.eps * noise
        flatter = dot(trial.residual, step).abs() < slope.abs()
        ratio = torch.where(level & flatter, 1.0, ratio)
        if not self.damping:
            ratio = torch.ones_like(ratio)
        taken = (ratio > 0) & state.active
        shrink = (1 - (2 * ratio - 1) ** 3).clamp_min(SHRINK)
        damping = torch.where(taken, damping * shrink, damping * state.growth)
        growth = torch.where(taken, 2.0, 2 * state.growth)
        kept = taken if self.damping else torch.ones_like(taken)
        active = state.active & (z != place.z).any(1)
        if state.linear and linear:
            linear = linear.where(kept, state.linear)
            units = torch.maximum(units, linear.lengths())
        return LevenbergState(*trial.where(kept, place), active, damping, growth, units, linear)

    def _direct(self, problem: Slope, state: LevenbergState) -> tuple[Tensor, Tensor]:
        """The damped step, `(B, n)`, and the size to whose rounding the energy is known, `(B,)`."""
        if state.linear:
            terms, matrix = state.linear
            # A residual is a difference of terms.
            size = norm(torch.bmm(matrix.abs(), state.z.abs().unsqueeze(2)).squeeze(2))
            return _damped(matrix, terms, state.damping, state.units), state.energy + state.energy.sqrt() * size
        jacobian = Jacobian(problem.terms, state.z)  # type: ignore[attr-defined]
        problem.nfev += 1
        solver = self.linear_solver or CG(rtol=1e-6)
        return solver.prepare(Normal(jacobian, state.damping)).solution(-state.residual), state.energy


def _linearise(problem: Slope, z: Tensor) -> tuple[Place, Linear]:
    """The place at `z`, and what the energy's terms look like there: one evaluation, and products."""
    jacobian = Jacobian(problem.terms, z)  # type: ignore[attr-defined]
    problem.nfev += 1
    terms, matrix = jacobian.value.detach(), columns(jacobian, z)
    gradient = torch.bmm(terms.unsqueeze(1), matrix).squeeze(1)
    return Place(z, gradient, 0.5 * terms.square().sum(1)), Linear(terms, matrix)


def _damped(matrix: Tensor, value: Tensor, damping: Tensor, units: Tensor) -> Tensor:
    r"""The step that minimises $|J s + r|^2 + \mu |D s|^2$, by a QR factorisation in units of $D$, `(B, n)`."""
    units = torch.where(units > 0, units, 1).unsqueeze(1)
    like = matrix[:, 0]
    below = torch.diag_embed(damping.sqrt().unsqueeze(1).expand_as(like))
    right = torch.cat([-value, torch.zeros_like(like)], dim=1).unsqueeze(2)
    q, r = torch.linalg.qr(torch.cat([matrix / units, below], dim=1))
    return torch.linalg.solve_triangular(r, torch.bmm(q.mT, right), upper=True).squeeze(2) / units.squeeze(1)


def columns(jacobian: Jacobian, like: Tensor) -> Tensor:
    """The Jacobians `(B, m, n)`, from as many products as they have rows or columns, the cheaper."""
    rows, width = jacobian.value.shape[1], like.shape[1]
    if rows <= width + RECORD:
        return jacobian.dense(jacobian.value.detach())
    jacobian.record(like)
    basis = torch.eye(width, dtype=like.dtype, device=like.device)
    return transforms.for_rows(lambda row: jacobian.matvec(row.expand_as(like)), basis, 2)


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
        """The matrices `(B, n, n)`."""
        jacobian = columns(self.jacobian, like)
        normal = torch.bmm(jacobian.mT, jacobian)
        return normal if self.shift is None else normal + torch.diag_embed(self.shift.expand_as(like))

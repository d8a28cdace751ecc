"""Newton's method; with an iterative linear solver, the Newton-Krylov method with a forcing sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require, require_count
from torchimplicit.core.problem import Residual
from torchimplicit.core.tree import norm
from torchimplicit.linear import GMRES, LU, Jacobian, LinearSolver
from torchimplicit.solve.ahead import DENSE
from torchimplicit.solve.linesearch import backtrack
from torchimplicit.solve.loop import Solver

# The forcing sequence, names and values of Eisenstat and Walker: its first term, its largest, its factor, and the size
# above which a term may not fall faster than by squaring.
ETA_FIRST, ETA_MAX, GAMMA, SAFEGUARD = 0.5, 0.9, 0.9, 0.1


class NewtonState(NamedTuple):
    """Iterate and residual, `(B, n)` each, and the relative tolerances `(B,)` of the next linear solve."""

    z: Tensor
    residual: Tensor
    forcing: Tensor


@dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    r"""Newton's method with backtracking; the default for `root`.

    Solves `J dz = -r` per sample, then halves the step until the residual falls. Converges quadratically near a regular
    root, also where a fixed-point iteration expands. A step costs two evaluations and a linear solve: `n` vectorised
    vector-Jacobian products with `LU`, as many Jacobian-vector products as it needs with `GMRES`. For large states that
    contract, `Anderson` is cheaper. A singular Jacobian ends a sample as non-finite.

    Far from the root the linear model is wrong, and solving it exactly is wasted. So an iterative linear solver follows
    a forcing sequence: a sample's relative tolerance is $\eta_k = 0.9\, (|r_k| / |r_{k-1}|)^2$, at first 0.5, at most
    0.9, not falling faster than $0.9\, \eta_{k-1}^2$ while that is above 0.1, and for fixed points no tighter than the
    last step needs. The linear solver's own `rtol` is the tightest that it becomes. Measured: up to half of the
    products. Not for linear equations, which one exact step solves, nor where local minima of the residual are
    near: loose steps take another path, and may stick where exact ones do not. There `forcing=False`.

    Source: S. Eisenstat and H. Walker, SIAM J. Sci. Comput. 17 (1996) 16, choice 2 with its safeguard; the bound by the
    tolerance from C. T. Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), section 6.3.

    Args:
        linear_solver: None takes `LU()` up to 256 unknowns per sample and `GMRES()` beyond.
        halvings: how often the backtracking halves a step at most; 0 takes full steps.
        forcing: whether an iterative linear solver solves early steps loosely; False takes its `rtol` in every step.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    linear_solver: LinearSolver | None = None
    halvings: int = 10
    forcing: bool = True

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        linear = self.linear_solver is None or isinstance(self.linear_solver, LinearSolver)
        require(self, "linear_solver", linear, "a LinearSolver such as LU() or GMRES(), or None")
        require_count(self, "halvings", least=0)
        require(self, "forcing", isinstance(self.forcing, bool), "True or False")

    def init(self, problem: Residual, z: Tensor) -> NewtonState:
        """The state at the start."""
        residual = problem(z)
        return NewtonState(z, residual, torch.full_like(residual[:, 0].detach(), ETA_FIRST))

    def step(self, problem: Residual, state: NewtonState) -> NewtonState:
        """One Newton step."""
        linear_solver = choose_linear_solver(self.linear_solver, state.z)
        inexact = self.forcing and not isinstance(linear_solver, LU)
        prepared = linear_solver.prepare(problem.take_jacobian(state.z) or Jacobian(problem, state.z))
        direction = -prepared.solution(state.residual, state.forcing if inexact else None)
        z, residual = backtrack(problem, state.z, state.residual, direction, self.halvings)
        if not inexact:
            return NewtonState(z, residual, state.forcing)
        with torch.no_grad():
            forcing = self._force(problem, state.forcing, norm(state.residual), norm(residual), z)
        return NewtonState(z, residual, forcing)

    def _force(self, problem: Residual, last: Tensor, before: Tensor, now: Tensor, z: Tensor) -> Tensor:
        """The next term of the forcing sequence, `(B,)`, from the last one, the residuals' norms and the iterate."""
        tiny = torch.finfo(now.dtype).tiny
        eta = GAMMA * (now / before.clamp_min(tiny)).square()
        slowest = GAMMA * last.square()
        eta = torch.where(slowest > SAFEGUARD, torch.maximum(eta, slowest), eta)
        if problem.comparable:
            enough = 0.5 * (self.absolute * z.shape[1] ** 0.5 + self.rtol * norm(z)) / now.clamp_min(tiny)
            eta = torch.maximum(eta, enough)
        return eta.clamp_max(ETA_MAX)


def choose_linear_solver(given: LinearSolver | None, z: Tensor) -> LinearSolver:
    """The linear solver of a step at `z`, `(B, n)`: the given one, or by size.

    Raises:
        NotImplementedError: grad is enabled, for `Unrolled`, and the linear solver is iterative.
    """
    linear_solver = given or (LU() if z.shape[1] <= DENSE else GMRES())
    if torch.is_grad_enabled() and not isinstance(linear_solver, LU):
        raise NotImplementedError(
            f"Unrolled cannot differentiate through the iterations of {type(linear_solver).__name__}; "
            "try linear_solver=LU(), or adjoint=Implicit()"
        )
    return linear_solver

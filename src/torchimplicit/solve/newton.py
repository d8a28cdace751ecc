"""Newton's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.core.problem import Residual
from torchimplicit.linear import GMRES, LU, Jacobian, LinearSolver
from torchimplicit.solve.linesearch import backtrack
from torchimplicit.solve.loop import Solver

DENSE = 256  # unknowns per sample up to which the Jacobian is built and factored by default


class NewtonState(NamedTuple):
    """Iterate and residual, `(B, n)` each."""

    z: Tensor
    residual: Tensor


@dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    """Newton's method with backtracking; the default for `root`.

    Solves `J dz = -r` per sample, then halves the step until the residual falls. Converges quadratically near a regular
    root, also where a fixed-point iteration expands. A step costs two evaluations and a linear solve: `n` vectorised
    vector-Jacobian products with `LU`, as many Jacobian-vector products as it needs with `GMRES`. For large states that
    contract, `Anderson` is cheaper. A singular Jacobian ends a sample as non-finite.

    Args:
        linear_solver: None takes `LU()` up to 256 unknowns per sample and `GMRES()` beyond.
        halvings: how often the backtracking halves a step at most; 0 takes full steps.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    linear_solver: LinearSolver | None = None
    halvings: int = 10

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        linear = self.linear_solver is None or isinstance(self.linear_solver, LinearSolver)
        require(self, "linear_solver", linear, "a LinearSolver such as LU() or GMRES(), or None")
        require(self, "halvings", isinstance(self.halvings, int) and self.halvings >= 0, "an integer >= 0")

    def init(self, problem: Residual, z: Tensor) -> NewtonState:
        """The state at the start."""
        return NewtonState(z, problem(z))

    def step(self, problem: Residual, state: NewtonState) -> NewtonState:
        """One Newton step."""
        linear_solver = self.linear_solver or (LU() if state.z.shape[1] <= DENSE else GMRES())
        if torch.is_grad_enabled() and not isinstance(linear_solver, LU):
            raise NotImplementedError(
                f"Unrolled cannot differentiate through the iterations of {type(linear_solver).__name__}; "
                "try Newton(linear_solver=LU()), or adjoint=Implicit()"
            )
        jacobian = Jacobian(problem, state.z)
        direction = -linear_solver.prepare(jacobian).solve(state.residual).x
        return NewtonState(*backtrack(problem, state.z, state.residual, direction, self.halvings))

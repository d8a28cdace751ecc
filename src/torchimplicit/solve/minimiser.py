"""What solvers that go down an energy have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual, Slope
from torchimplicit.solve.linesearch import Place
from torchimplicit.solve.loop import Solver


@dataclass(frozen=True, kw_only=True)
class Minimiser(Solver):
    """Base of the solvers of `argmin` that go down: their steps never raise the energy, but for rounding.

    Their states are named tuples with the fields of a `Place`, and `active`: which samples still move, `(B,)` bool.

    Args:
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    # The gradient may grow for long while the energy falls, and by much near a saddle: who is stuck is known.
    patience: ClassVar[int] = 10_000
    divergence: ClassVar[float] = math.inf

    max_steps: int = 200

    def begin(self, problem: Residual, z: Tensor) -> tuple[Place, Tensor]:
        """The place at the start, and who is active: all.

        Raises:
            TypeError: the problem is no energy's.
            NotImplementedError: grad is enabled, for `Unrolled`.
        """
        name = type(self).__name__
        if not isinstance(problem, Slope):
            raise TypeError(
                f"solver={name}(): it minimises an energy, got a fixed point or a root; try argmin(energy, z0, ...), "
                "or Anderson() and Newton() for those"
            )
        residual = problem(z)
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"Unrolled cannot differentiate through the line searches of {name}; try adjoint=Implicit(), or "
                "solver=Newton(linear_solver=LU())"
            )
        return Place(z, residual, problem.energy), torch.ones_like(residual[:, 0], dtype=torch.bool)

    def stuck(self, state: Any) -> Tensor:
        """Samples that no search moves any more."""
        return ~state.active

    def retire(self, state: Any, rows: Tensor) -> None:
        """Samples that have stopped move no more: nothing is searched for them."""
        state.active[rows] = False

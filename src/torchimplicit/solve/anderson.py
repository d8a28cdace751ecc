"""Anderson acceleration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.problem import Residual
from torchimplicit.solve.history import Ring, Tape
from torchimplicit.solve.loop import Solver


class AndersonState(NamedTuple):
    """Iterate and residual `(B, n)`, and their past."""

    z: Tensor
    residual: Tensor
    history: Ring | Tape


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    r"""Anderson acceleration (type II), the default for equilibrium models.

    Every `period` steps it takes the weights, summing to one, that make the weighted sum of the last `window` residuals
    smallest, and goes to the same weighted sum of their Picard steps; the steps between are plain Picard steps. These
    explore as well as accelerated ones do: on contractions the number of evaluations stays the same to a step or two,
    on partly expanding maps it often falls, and the cost of the acceleration is halved. One evaluation a step.
    Equivalent to GMRES on linear maps; `Newton` is safer on maps that expand in many directions.

    The ridge is relative to each residual's own size (and never below ten roundings), so acceleration does not
    fade as the residuals shrink; an absolute ridge would turn it into averaging.

    Sources: D. G. Anderson, J. ACM 12 (1965) 547; H. Walker and P. Ni, SIAM J. Numer. Anal. 49 (2011) 1715, eq. 2.2;
    A. Banerjee, P. Suryanarayana, J. Pask, Chem. Phys. Lett. 647 (2016) 31 (periodic acceleration).

    Args:
        window: residuals to combine, >= 1; 1 is Picard iteration. Memory: `2 * window` states.
        period: accelerate every so many steps, >= 1; 1 is the classical method.
        damping: factor of the residual in the step, in (0, 2]; 1 is undamped.
        ridge: relative regularisation of the least-squares problem, >= 0.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    window: int = 6
    period: int = 3
    damping: float = 1.0
    ridge: float = 1e-10

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "window", "period")
        require(self, "damping", is_number(self.damping) and 0 < self.damping <= 2, "a number in (0, 2]")
        require(self, "ridge", is_number(self.ridge) and 0 <= self.ridge < math.inf, "a finite number >= 0")

    @property
    def memory(self) -> int:
        """How many residuals are kept; a ring of one would overwrite the iterate it stands for."""
        return max(min(self.window, self.max_steps), 2)

    def init(self, problem: Residual, z: Tensor) -> AndersonState:
        """The state at the start; allocates the history."""
        tape = torch.is_grad_enabled()
        history = Tape(self.memory, self.ridge) if tape else Ring(z, self.memory, self.ridge)
        return AndersonState(z, problem(z, out=history.slot), history)

    def step(self, problem: Residual, state: AndersonState) -> AndersonState:
        """One step, accelerated when its turn has come."""
        z, residual, history = state
        z = history.append(z, residual, self.damping)
        if self.window > 1 and history.count > 1 and history.count % self.period == 0:
            z = history.combine()
        return AndersonState(z, problem(z, out=history.slot), history)

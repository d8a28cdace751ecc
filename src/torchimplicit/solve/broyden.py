"""Broyden's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require, require_count
from torchimplicit.core.problem import Residual
from torchimplicit.solve.compiled.secants import CompiledSecants
from torchimplicit.solve.linesearch import backtrack
from torchimplicit.solve.loop import Solver
from torchimplicit.solve.secants import Secants, SecantTape


class BroydenState(NamedTuple):
    """Iterate and residual `(B, n)`, and the pairs behind them."""

    z: Tensor
    residual: Tensor
    secants: Secants | SecantTape


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Broyden's good method in limited memory: a Newton method whose Jacobian is learnt from the steps taken.

    Starts as Picard iteration and converges superlinearly as long as the memory lasts. One evaluation a step. On maps
    that contract well it needs as many evaluations as `Anderson`, on slow or partly expanding ones fewer; its steps
    cost more. What it has learnt is the `state` of the solution: `Shine` and `Implicit(precondition=True)` reuse it for
    the backward solve, a warm start for the next solve. Not for a `root` whose Jacobian is far from the identity: there
    take `Newton`, or scale the function.

    Sources: C. G. Broyden, Math. Comp. 19 (1965) 577; the limited memory as in R. Byrd, J. Nocedal, R. Schnabel, Math.
    Program. 63 (1994) 129; a step that is not finite, or implausibly long, makes a sample start anew.

    Args:
        memory: pairs to keep, >= 1; takes `2 * memory` states.
        halvings: how often a line search halves a step at most until the residual falls (Armijo), per sample; 0 takes
            full steps. One evaluation each.
        compile: compile the step (`torch.compile`; seconds, once for a shape; on the CPU needs a C++ compiler): 0.74 of
            the time on 64 x 128, nothing gained on large states. `Unrolled` runs uncompiled.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    memory: int = 10
    halvings: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "memory")
        require(self, "compile", isinstance(self.compile, bool), "True or False")
        require_count(self, "halvings", least=0)

    @property
    def learns(self) -> bool:
        """See `Solver.learns`."""
        return True

    def init(self, problem: Residual, z: Tensor) -> BroydenState:
        """The state at the start; allocates the memory."""
        if torch.is_grad_enabled():
            secants = SecantTape(self.memory)
        elif self.compile:
            secants = CompiledSecants(z, self.memory)  # whatever the limit of steps: another size is compiled anew
        else:
            secants = Secants(z, max(min(self.memory, self.max_steps), 1))
        return BroydenState(z, problem(z), secants)

    def resume(self, problem: Residual, z: Tensor, knowledge: Secants) -> BroydenState:
        """The state at the start, with the pairs of an earlier solve of the same shape."""
        if torch.is_grad_enabled() or not knowledge.fits(z):
            return self.init(problem, z)
        return BroydenState(z, problem(z), knowledge.take(torch.arange(len(z), device=z.device)))

    def retire(self, state: BroydenState, rows: Tensor) -> None:
        """Sets the pairs of samples that have stopped aside."""
        if isinstance(state.secants, Secants):
            state.secants.retire(rows)

    def knowledge(self, state: BroydenState) -> Secants | None:
        """The pairs."""
        if not isinstance(state.secants, Secants):
            return None
        state.secants.settle()
        return state.secants

    def step(self, problem: Residual, state: BroydenState) -> BroydenState:
        """One quasi-Newton step."""
        z, residual, secants = state
        step = secants.propose(residual)
        if self.halvings:
            new_z, new_residual = backtrack(problem, z, residual, step, self.halvings)
            step = new_z - z
        else:
            new_z = z + step
            new_residual = problem(new_z)
        secants.append(step, new_residual - residual)
        return BroydenState(new_z, new_residual, secants)

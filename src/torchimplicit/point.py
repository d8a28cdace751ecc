"""What is asked of a solve for a point, whatever its condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchimplicit.adjoint import Adjoint, Unrolled
from torchimplicit.core.compiled.worth import Compile
from torchimplicit.core.options import check_on_failure, is_count, require_instance
from torchimplicit.core.problem import Residual
from torchimplicit.core.status import OnFailure, Solution
from torchimplicit.solve import Newton, Result, Solver


class Options(NamedTuple):
    """How to solve, and what to keep; what is not explained here is in `fixed_point`.

    Attributes:
        solver: see there.
        adjoint: see there; None takes what suits the number of unknowns.
        warm_start: see there.
        on_failure: see there.
        trace: see there.
        save_steps: see there.
        review: looks at where the loop has ended, and may change the report: `(residual, result) -> None`.
        present: the solution as the caller shall see it, also in an error.
        compile: see there.
    """

    solver: Solver
    adjoint: Adjoint | None
    warm_start: Solution | None
    on_failure: OnFailure
    trace: bool = False
    save_steps: Sequence[int] = ()
    review: Callable[[Residual, Result], None] | None = None
    present: Callable[[Solution], Solution] | None = None
    compile: Compile = False

    @property
    def plain(self) -> bool:
        """Whether this is a solve of nothing but its solution, by no prepared map, and not unrolled."""
        unrolled = isinstance(self.adjoint, Unrolled) and torch.is_grad_enabled()
        return not (self.trace or self.save_steps or self.review or unrolled)


def check_options(solver: Any, adjoint: Any, on_failure: str, save_steps: Any = ()) -> None:
    """Refuses what is no solver, no adjoint, none of the three words and no steps.

    Raises:
        TypeError: `solver` or `adjoint` is something else, the class in place of an instance for example.
        ValueError: `on_failure` is none of "raise", "warn", "ignore"; `save_steps` are no numbers of steps; or the
            adjoint needs another solver.
    """
    require_instance("solver", solver, Solver, "Anderson()")
    require_instance("adjoint", adjoint, Adjoint, "Implicit()")
    if isinstance(adjoint, Unrolled) and adjoint.checkpoint and isinstance(solver, Newton):
        raise ValueError(
            "Unrolled(checkpoint=True) recomputes evaluations, but Newton() differentiates the function inside every "
            "step; expected another solver, such as Anderson(), or adjoint=Unrolled(), or Implicit()"
        )
    if adjoint.wants_inverse and not solver.learns:
        raise ValueError(
            f"adjoint={adjoint!r} reuses what a quasi-Newton solver has learnt, got solver={solver!r}; expected one "
            "that learns, such as Broyden()"
        )
    check_on_failure(on_failure)
    if not isinstance(save_steps, list | tuple) or not all(is_count(step, 0) for step in save_steps):
        raise ValueError(f"save_steps: got {save_steps!r}, expected a list of steps, integers >= 0")

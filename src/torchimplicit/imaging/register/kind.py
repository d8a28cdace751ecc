"""What kinds of registration have in common: from a pair and a start to a transform and a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchimplicit.adjoint import Adjoint
from torchimplicit.core.status import OnFailure, Report
from torchimplicit.imaging.register.pair import Pair
from torchimplicit.imaging.register.transform import Transform
from torchimplicit.solve import Solver


@dataclass(frozen=True)
class Call:
    """How to solve, and what to make of it.

    Attributes:
        adjoint: see `align`.
        on_failure: see `align`.
        present: makes a result of a transform and a report, also for errors to carry.
        progress: told the number of a level, from 0, and how many there are, when work on it begins.
    """

    adjoint: Adjoint | None
    on_failure: OnFailure
    present: Callable[[Transform, Report], Any]
    progress: Callable[[int, int], None]


class Kind:
    """Base of what `align` looks for: frozen dataclasses of options."""

    def find(self, pair: Pair, initial: Any, call: Call) -> Any:
        """The transform that registers a pair, from one to start from, as `call.present` shows it."""
        raise NotImplementedError

    def usual(self, gradient: bool = False) -> Solver:
        """The solver of the last level where none is chosen: as good as a value wants it, or a gradient."""
        raise NotImplementedError

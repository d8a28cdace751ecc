"""Who makes the steps of stochastic paths."""

from __future__ import annotations

from typing import Any

from torchimplicit.path.engine import Engine
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.solver import PathSolver
from torchimplicit.sde.adaptive import AdaptiveLoop
from torchimplicit.sde.loop import GridLoop


class Steps(Engine):
    """Makes them one at a time, of a given size or chosen on the way; see `Engine`."""

    def loop(self, solver: PathSolver, *args: Any) -> StepLoop:
        """See `Engine.loop`."""
        return AdaptiveLoop(solver, *args) if solver.adapts else GridLoop(solver, *args)

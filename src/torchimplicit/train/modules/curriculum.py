"""How the solves of a network change while it trains: first unrolled, then loose, then as its layers say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torchimplicit.adjoint import Adjoint, Unrolled
from torchimplicit.core.options import require, require_count
from torchimplicit.nn import DEQ
from torchimplicit.solve import Picard, Solver


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """What to begin with, in steps of the optimiser; evaluation always solves as the layers say.

    A deep equilibrium model trains faster as a shallow weight-tied network at first (S. Bai, J. Z. Kolter, V. Koltun,
    arXiv 1909.01377, appendix), and its first solves need no precision.

    Args:
        unrolled_steps: steps in which the layers are `depth` applications of their cells, unrolled.
        depth: of these.
        loose_rtol: the forward tolerance right after them; it falls geometrically to the solver's own.
        tighten_steps: how many steps that takes.
    """

    unrolled_steps: int = 0
    depth: int = 4
    loose_rtol: float | None = None
    tighten_steps: int = 1000

    def __post_init__(self):
        require_count(self, "unrolled_steps", least=0)
        require_count(self, "depth", "tighten_steps")
        loose = self.loose_rtol is None or 0 < self.loose_rtol < 1
        require(self, "loose_rtol", loose, "None or a number in (0, 1)")

    def unrolls(self, step: int) -> bool:
        """Whether the layers are unrolled at this step."""
        return step < self.unrolled_steps

    def at(self, step: int, solver: Solver, adjoint: Adjoint) -> tuple[Solver, Adjoint]:
        """What a layer with this solver and adjoint uses at this step."""
        if self.unrolls(step):
            return Picard(max_steps=self.depth), Unrolled()
        progress = (step - self.unrolled_steps) / self.tighten_steps
        if self.loose_rtol is None or progress >= 1 or self.loose_rtol <= solver.rtol:
            return solver, adjoint
        return replace(solver, rtol=self.loose_rtol ** (1 - progress) * solver.rtol**progress), adjoint


class Layers:
    """The equilibrium layers of a network, with the options that they were built with."""

    def __init__(self, layers: Iterable[DEQ]):
        self._own: list[tuple[DEQ, dict[str, Any]]] = [
            (layer, {name: getattr(layer, name) for name in ("solver", "adjoint", "warm_start")}) for layer in layers
        ]

    def follow(self, curriculum: Curriculum, step: int) -> None:
        """Sets them to what the curriculum says for this step."""
        for layer, own in self._own:
            layer.solver, layer.adjoint = curriculum.at(step, own["solver"], own["adjoint"])
            layer.warm_start = own["warm_start"] and not curriculum.unrolls(step)

    def restore(self) -> None:
        """Sets them back to their own options."""
        for layer, own in self._own:
            layer.solver, layer.adjoint, layer.warm_start = own["solver"], own["adjoint"], own["warm_start"]

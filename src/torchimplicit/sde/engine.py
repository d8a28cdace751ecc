"""Who makes the steps of stochastic paths."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.path.engine import Engine, Foreseen
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.report import PathReport
from torchimplicit.path.solver import PathSolver
from torchimplicit.sde.adaptive import AdaptiveLoop
from torchimplicit.sde.ahead import ahead
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.foretold import TOGETHER
from torchimplicit.sde.loop import GridLoop
from torchimplicit.sde.report import StochasticReport
from torchimplicit.sde.solver import SDESolver
from torchimplicit.sde.structure import sees_state, structure_of

PART = 0.381966  # of the way, where the structure is looked at: at its ends a coefficient may be zero
LOOKS = 4  # at additive noise, at least


class Steps(Engine):
    """Makes them one at a time, of a given size or chosen on the way; see `Engine`."""

    looks: bool = True
    in_a_graph: ClassVar[int] = TOGETHER  # of an evaluation or two each, where a pass costs more than what it passes

    def look(self, solver: PathSolver, field: Field, y0: Tensor, end: Tensor, ts: Tensor, report: PathReport) -> None:
        """Finds the structure of the noise and the order that follows; see `Engine.look`, `structure_of`.

        Raises:
            ValueError: additive noise depends on the state.
        """
        assert isinstance(solver, SDESolver)
        assert isinstance(field, NoisyField)
        assert isinstance(report, StochasticReport)

        diffusion = partial(field.diffusion, torch.lerp(ts[0], ts[-1], PART))
        if report.noise == "additive" and y0.numel() and _sees_state(field, y0, end, ts):
            kind = "diagonal" if diffusion(y0).dim() == 2 else "general"
            raise ValueError(
                "noise: got 'additive' with a diffusion that depends on the state, expected one of time and arguments "
                f"alone; try noise={kind!r}"
            )
        if solver.adapts:
            return
        if solver.strong.get("commuting") != solver.strong.get("general"):
            report.structure = structure_of(report.noise, diffusion, y0)
        report.strong_order = solver.strong.get(report.structure)

    def ahead(self, solver: PathSolver, ts: Tensor) -> Foreseen | None:
        """See `Engine.ahead`."""
        assert isinstance(solver, SDESolver)
        return ahead(solver, ts)

    def loop(self, solver: PathSolver, *args: Any) -> StepLoop:
        """See `Engine.loop`."""
        return AdaptiveLoop(solver, *args) if solver.adapts else GridLoop(solver, *args)


def _sees_state(field: NoisyField, y0: Tensor, end: Tensor, ts: Tensor) -> bool:
    """Whether additive noise changes with the state, at a time of its own for every sample, and `LOOKS` at least.

    So it costs two evaluations of a batch. Multiples of the golden section lie evenly, however many there are; of four
    no gap is larger than a quarter of the way.
    """
    batch = len(y0)
    for first in range(0, max(batch, LOOKS), batch):
        part = torch.arange(first + 1, first + batch + 1, device=ts.device).to(ts.dtype).mul(PART).frac()
        if sees_state(partial(field.diffusion, torch.lerp(ts[0], ts[-1], part)), y0, end):
            return True
    return False

"""The loop over steps of a given size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.path.loop import StepLoop
from torchimplicit.sde.grid import Grid, require_fitting


class GridLoop(StepLoop):
    """A solve whose steps end on a `Grid`; see `StepLoop`."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.grid = Grid(self.state.ts, self.dt)

    def begin(self) -> None:
        """See `StepLoop.begin`.

        Raises:
            ValueError: steps longer than the whole time.
        """
        ts = self.state.ts
        require_fitting(self.solver, float((ts[-1] - ts[0]).max()) if ts.numel() else 0.0)
        super().begin()

    def _free_stop(self) -> Tensor:
        stop = self.grid.stops(self.state.number, 1)[0]
        return stop if self.all_running else torch.where(self.state.running, stop, self.state.t)

    def _stop_time(self) -> Tensor:
        return self._free_stop()

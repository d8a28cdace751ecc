"""The loop over steps of a given size: what everybody does at the same times is looked at once in a while."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.record import Outputs, Step
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.grid import Grid, is_shared, require_fitting
from torchimplicit.sde.solver import SDESolver
from torchimplicit.sde.steps import LONGEST


class GridLoop(StepLoop):
    """A solve whose steps end on a `Grid`; see `StepLoop`.

    Where all samples have the same times, and all go on, nothing depends on what steps find: they are made many at a
    time without a look. Should states not be finite then, all are made again, and from there on with a look at each.
    """

    field: NoisyField
    solver: SDESolver

    def __init__(self, *args: Any):
        super().__init__(*args)
        ts = self.state.ts
        self.grid = Grid(ts, self.dt)
        self.together = Grid(ts[:, :1], self.dt) if self.observer is None and is_shared(ts) else None

    def begin(self) -> None:
        """See `StepLoop.begin`.

        Raises:
            ValueError: steps longer than the whole time.
        """
        require_fitting(self.solver, self.state.ts)
        super().begin()

    def run(self) -> int:
        """See `StepLoop.run`."""
        if self.together is not None:
            self._run_together(self.together)
        return super().run()

    def _free_stop(self) -> Tensor:
        stop = self.grid.stops(self.state.number, 1)[0]
        return stop if self.all_running else torch.where(self.state.running, stop, self.state.t)

    def _stop_time(self) -> Tensor:
        return self._free_stop()

    def _run_together(self, grid: Grid) -> None:
        """Makes steps of all samples without looking, as long as all goes well."""
        state, landings = self.state, grid.landings
        if landings is None:
            return
        total = max(landings)
        while self.all_running and self.attempts < self.limit and state.number < total:
            left = min(total - state.number, self.limit - self.attempts)
            count = -(-left // -(-left // LONGEST))  # as many each time, so that the noise's room fits again
            count = min(count + count % 2, left)
            if not self._many(grid, count, landings):
                return
        if self.all_running and state.number == total:
            self._stop(state.running, Status.CONVERGED)

    def _many(self, grid: Grid, count: int, landings: dict[int, int]) -> bool:
        """Makes some steps; whether all states are finite then. If not, nothing has happened."""
        state, y, made, landed = self.state, self.state.y, [], 0
        self.field.prepare(state.t, y)
        spans, h = grid.spans(state.number, count, state.t)
        sizes = h.to(y.dtype).view(-1, 1, 1).expand(-1, len(y), 1).unbind()
        for span, size, path in zip(spans, sizes, self.field.driver.increments(spans, h), strict=True):
            end, _ = self.solver.made(self.field, span, size, y, path)
            place = landings.get(span.number + 1)
            if place is not None:
                landed = place
                self._write(place, end)
            if self.phase is not None:
                made.append((Step(span.start, span.stop, True, self._all_at(place), span.number), y))
            y = end
        if not math.isfinite(float(y.sum())) and not bool(y.isfinite().all()):
            return False
        for step, before in made:
            assert self.phase is not None
            self.phase.add(step, before)
        state.t, state.y, state.number = spans[-1].stop, y, state.number + count
        self.attempts += count
        self.uncounted += count
        if landed:
            state.next = torch.full_like(state.next, landed + 1)
            self._see_next()
        return True

    def _write(self, place: int, y: Tensor) -> None:
        if self.rows is None:
            self.values[place] = y
        else:
            self.values[place, self.rows] = y

    def _all_at(self, place: int | None) -> Outputs | None:
        """An output time, of all samples."""
        if place is None:
            return None
        samples = torch.arange(len(self.state.t), device=self.state.t.device)
        return Outputs(samples, torch.full_like(samples, place))

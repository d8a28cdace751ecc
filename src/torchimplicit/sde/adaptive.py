"""The loop over steps that every sample chooses for itself, by their error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.tree import norm
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.solver import AdaptiveSolver
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.stack import Stack

SHORTER = 0.99  # what a step may be of the one that was rejected, at most; see `stack.WHOLE`


class AdaptiveLoop(StepLoop):
    """A solve whose noise is drawn as its steps want it, and kept where they are rejected; see `StepLoop`, `Stack`."""

    field: NoisyField
    stack: Stack
    path: Increment
    stop: Tensor

    def begin(self) -> None:
        """See `StepLoop.begin`."""
        self.field.prepare(self.state.t, self.state.y)
        self.stack = self.field.driver.stack(self.state.t)
        super().begin()

    def run(self) -> int:
        """See `StepLoop.run`."""
        if self.rows is not None:  # a phase of fewer samples, which does not begin
            self.stack = self.field.driver.stack(self.state.t)
        return super().run()

    def attempt(self) -> None:
        """See `StepLoop.attempt`."""
        state, number = self.state, self.state.number
        before = state.t
        super().attempt()
        moved = state.t > before
        self.stack.settle(moved)
        # Nearly all of what waits would be all of it, the same step again, and be rejected again.
        shorter = torch.minimum(state.h, SHORTER * (self.stop - before))
        state.h = torch.where(moved | ~state.running, state.h, shorter)
        if self.phase is not None and state.number > number:  # made again, those who stay shall feel nothing
            went = moved.unsqueeze(1)
            self.field.driver.follow(number, self.path.each(lambda part: torch.where(went, part, 0.0)), keep=True)

    def _stop_time(self) -> Tensor:
        """Where the next step ends, `(B,)`; its noise is drawn, or taken from what waits."""
        state, wanted = self.state, super()._stop_time()
        tried = self.stack.propose(state.t, wanted, state.running)
        stop = torch.where(state.running, tried.stop, state.t)
        state.h = torch.where(stop < wanted, stop - state.t, state.h)  # what waits was shorter
        self.path, self.stop = tried.path, stop
        self.field.driver.follow(state.number, tried.path, keep=self.phase is not None)
        return stop

    def _first_step(self, field: Any, slope: Tensor, way: Tensor) -> Tensor:
        """A first step, `(B,)`: drift and noise change the state by a tenth, or by a tenth of what is tolerated."""
        state, solver, width = self.state, self.solver, self.state.y.shape[1]
        assert isinstance(solver, AdaptiveSolver)
        if solver.dt0 is None:
            scale = state.y.abs() * self.tolerance.rtol + self.tolerance.atol
            spread = slope[:, width:].unflatten(1, (width, -1)).square().sum(2).sqrt()
            size = 0.1 * norm(state.y / scale).clamp_min(1.0)
            first = torch.minimum(size / norm(slope[:, :width] / scale), (size / norm(spread / scale)).square())
            first = first.nan_to_num(nan=torch.inf).to(state.t.dtype)
        else:
            first = torch.full_like(state.t, solver.dt0)
        return torch.minimum(first, way)

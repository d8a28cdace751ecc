r"""The backward solve along a path, the gradient of the states beside it: the continuous adjoint equation.

With $g(t)$ the gradient of the loss by the state at time $t$, $\dot g = -(\partial f / \partial y)^\top g$, and $g$
jumps by an output's own gradient at the time of the output. The gradient of the explicit tensors $a$ is
$\int (\partial f / \partial a)^\top g \, dt$. Source: L. S. Pontryagin et al., The Mathematical Theory of Optimal
Processes, 1962; for networks R. T. Q. Chen et al., arXiv 1806.07366, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.core import transforms
from torchimplicit.core.status import Status
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.passing import pass_outputs
from torchimplicit.path.record import Outputs
from torchimplicit.path.solver import PathSolver
from torchimplicit.path.state import IntegratorState
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import Tolerance


def augmented(field: Field) -> Field:
    r"""The field of `(y, g)`, `(B, 2n)`, against the time: $-f$ and $(\partial f / \partial y)^\top g$ at `t = -s`."""

    def evaluate(s: Tensor, rows: Tensor) -> Tensor:
        y, cotangent = rows.chunk(2, dim=1)
        if transforms.active() or (torch.is_grad_enabled() and rows.requires_grad):  # a stage's equation, linearised
            slope, back, *_ = torch.func.vjp(lambda y: field(-s, y), y)
            return torch.cat((-slope, back(cotangent)[0]), dim=1)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            slope = field(-s, y)
        pulled = torch.autograd.grad(slope, y, cotangent, allow_unused=True)[0] if slope.requires_grad else None
        return torch.cat((-slope.detach(), torch.zeros_like(cotangent) if pulled is None else pulled), dim=1)

    return Field(evaluate)


@dataclass
class Marks:
    """Where the backward solve stops, every sample for itself: the outputs, and further states that were kept.

    Attributes:
        ts: times, against the time, so increasing, `(K, B)`.
        values: the states there, `(K, B, n)`.
        grads: their gradients, `(K, B, n)`.
    """

    ts: Tensor
    values: Tensor
    grads: Tensor


@lru_cache(maxsize=32)
def gauss(count: int) -> tuple[tuple[float, float], ...]:
    """Nodes and weights of Gauss' quadrature on `[0, 1]`: G. Golub, J. Welsch, Math. Comp. 23 (1969) 221."""
    k = torch.arange(1, count, dtype=torch.float64, device="cpu")
    beside = k / torch.sqrt(4 * k**2 - 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return tuple(zip(((nodes + 1) / 2).tolist(), vectors[0].square().tolist(), strict=True))


class Integral:
    """The gradient of the explicit tensors: a quadrature over every accepted step, on the path inside it.

    Args:
        field: the vector field.
        leaves: the tensors that want a gradient.
        size: what the cotangents are to be multiplied with, `(B, 1)`.
        order: of the solve.
        tolerance: `(rtol, atol)` that the quadrature's own error is held against; None where it shall not count.
    """

    def __init__(
        self,
        field: Field,
        leaves: Sequence[Tensor],
        size: Tensor,
        order: int,
        tolerance: tuple[float, float] | None = None,
    ):
        self.field, self.leaves, self.size, self.tolerance = field, list(leaves), size, tolerance
        self.count = -(-order // 2)
        self.totals: Gradients = [None] * len(self.leaves)

    def over(self, done: Stepped, state: IntegratorState, h: Tensor, accept: Tensor, count: int) -> Gradients:
        """The integral over one step, of the samples that accept it, from so many nodes."""
        everybody = torch.arange(len(h), device=h.device)
        found: Gradients = [None] * len(self.leaves)
        moves = accept.unsqueeze(1)
        for node, weight in gauss(count):
            inside = done.inside.at(torch.full_like(h, node), everybody)
            # Zero times NaN is NaN: where a step was not accepted, the field is asked for its start.
            y, cotangent = torch.where(moves, inside, state.y).chunk(2, dim=1)
            cotangent = torch.where(moves, cotangent * (weight * h.to(y.dtype).unsqueeze(1)) * self.size, 0.0)
            with torch.enable_grad():
                slope = self.field(-(state.t + node * h), y)
            if slope.requires_grad:
                found = summed(found, torch.autograd.grad(slope, self.leaves, cotangent, allow_unused=True))
        return found

    def error(self, found: Gradients, done: Stepped, state: IntegratorState, h: Tensor, accept: Tensor) -> Tensor:
        """The error over its tolerance, one number: the distance to the quadrature with a node less."""
        assert self.tolerance is not None
        rtol, atol = self.tolerance
        fewer = self.over(done, state, h, accept, max(1, self.count - 1))
        squares, unknowns = h.new_zeros(()), 0
        for one, other, total in zip(found, fewer, self.totals, strict=True):
            if one is not None and other is not None:
                scale = one.abs() if total is None else torch.maximum((total + one).abs(), total.abs())
                ratio = (one - other) / (atol * self.size.amax() + rtol * scale)
                squares, unknowns = squares + ratio.abs().square().sum().to(h.dtype), unknowns + ratio.numel()
        return (squares / max(1, unknowns)).sqrt()

    def add(self, found: Gradients) -> None:
        """Takes one more step's part."""
        self.totals = summed(self.totals, found)


class BackwardLoop(StepLoop):
    """The backward solve, from where every sample was to the first time: one solve, whose state jumps at the marks.

    Args:
        solver: the method, with tolerances for `(B, 2n)`.
        field: the vector field of `y`, forward in time.
        reached: the last time of every sample, as `field` counts it, `(B,)`.
        marks: where to stop.
        limit: steps that may be made.
        integral: of the explicit tensors; None where none wants a gradient.
        wants_times: whether the times want a gradient.
        tolerance: for drifts of `y`.
        largest: see `StepLoop`.
    """

    def __init__(
        self,
        solver: PathSolver,
        field: Field,
        reached: Tensor,
        marks: Marks,
        limit: int,
        integral: Integral | None,
        wants_times: bool,
        tolerance: Tolerance,
        largest: Tensor | None,
    ):
        self.marks, self.integral, self.wants_times, self.drift_tolerance = marks, integral, wants_times, tolerance
        self.part: Gradients | None = None
        self.everybody = torch.arange(len(reached), device=reached.device)
        behind = marks.ts <= -reached
        place = behind.sum(0)
        cotangent = torch.where(behind.unsqueeze(2), marks.grads, 0.0).sum(0)
        state = IntegratorState.start(marks.ts, torch.cat((marks.values[place - 1, self.everybody], cotangent), dim=1))
        state.t, state.next = -reached, place
        super().__init__(solver, augmented(field), state, marks.values, None, limit, largest=largest)
        self.stops_at_outputs = True
        self._see_next()
        self.drift, self.size = torch.zeros_like(state.ratio), self._size()
        self.gains = torch.zeros_like(marks.ts)

    def begin(self) -> None:
        """See `StepLoop.begin`; a sample that never left the first time is there."""
        state = self.state
        if self.wants_times:
            places, samples = torch.nonzero(self.marks.ts == state.t, as_tuple=True)
            self._gain(self.field(state.t, state.y), Outputs(samples, places))
        super().begin()
        self._stop(state.next == len(state.ts), Status.CONVERGED)

    def _ratio(self, done: Stepped, h: Tensor) -> Tensor:
        ratio = super()._ratio(done, h)
        if self.integral is None or self.integral.tolerance is None:
            return ratio
        # The quadrature's error can reject the step, too; what it costs is kept for `_integrate`, should it not.
        accept = (ratio <= 1) & self.state.running
        self.part = self.integral.over(done, self.state, h, accept, self.integral.count)
        return torch.maximum(ratio, self.integral.error(self.part, done, self.state, h, accept))

    def _go_on(self, done: Stepped, stop: Tensor, h: Tensor, ratio: Tensor) -> None:
        self._integrate(done, h, self.state.running)
        super()._go_on(done, stop, h, ratio)
        self.size = torch.maximum(self.size, self._size())

    def _move(self, done: Stepped, stop: Tensor, h: Tensor, accept: Tensor, some_stay: bool, crosses: bool) -> None:
        self._integrate(done, h, accept)
        super()._move(done, stop, h, accept, some_stay, crosses)
        self.size = torch.maximum(self.size, self._size())
        if crosses:
            self._land()

    def _integrate(self, done: Stepped, h: Tensor, accept: Tensor) -> None:
        if self.integral is not None:
            part = (
                self.integral.over(done, self.state, h, accept, self.integral.count) if self.part is None else self.part
            )
            self.integral.add(part)

    def _outputs(self, stop: Tensor, done: Stepped, h: Tensor) -> Outputs:
        self.landed = pass_outputs(self.state, self.outputs, stop)
        self._see_next()
        return self.landed

    def _size(self) -> Tensor:
        """The size of every unknown, `(B, n)`: its largest since the last mark is what a drift is held against.

        One that is zero at the mark has no other size of its own.
        """
        return self.state.y.chunk(2, dim=1)[0].abs()

    def _land(self) -> None:
        """Sets the states that came to a mark back on the path, and adds the gradients there."""
        state, marks, samples, places = self.state, self.marks, self.landed.samples, self.landed.places
        here = torch.zeros_like(state.running).index_fill(0, samples, True)
        y, cotangent = state.y.chunk(2, dim=1)
        stored = marks.values[state.next - 1, self.everybody]
        drift = self.drift_tolerance.ratio(stored - y, stored, self.size).nan_to_num(math.inf, math.inf)
        self.drift = torch.where(here, torch.maximum(self.drift, drift), self.drift)
        y = torch.where(here.unsqueeze(1), stored, y)
        self.size = torch.where(here.unsqueeze(1), stored.abs(), self.size)
        cotangent = cotangent.index_put((samples,), marks.grads[places, samples], accumulate=True)
        state.y = torch.cat((y, cotangent), dim=1)
        # The jump makes the last slope wrong, which methods hand on to the next step.
        if self.wants_times or state.slope is not None:
            slope = self.field(state.t, state.y)
            self._gain(slope, self.landed)
            state.slope = None if state.slope is None else torch.where(here.unsqueeze(1), slope, state.slope)

    def _gain(self, slope: Tensor, landed: Outputs) -> None:
        """What the loss gains when an output's time grows."""
        samples, places = landed.samples, landed.places
        back = slope[samples, : slope.shape[1] // 2]
        self.gains[places, samples] = -(back * self.marks.grads[places, samples]).sum(1).to(self.gains.dtype)

    def gain_of_start(self) -> Tensor:
        """What the loss gains when the first time grows, `(B,)`."""
        y, cotangent = self.state.y.chunk(2, dim=1)
        return (self.field(self.state.t, self.state.y)[:, : y.shape[1]] * cotangent).sum(1)

"""Steps forward and their gradients by compiled kernels, a few steps a call: what `odeint(compile=True)` does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.core.compiled.kernel import CompileError
from torchimplicit.core.status import Status
from torchimplicit.ode.compiled.kernel import CHUNK, Chunk, Kernel, find_kernel
from torchimplicit.ode.explicit.step import interpolant
from torchimplicit.ode.explicit.tableau import weights
from torchimplicit.path.engine import PhaseBackward
from torchimplicit.path.field.dynamics import Field, RawField
from torchimplicit.path.interpolant import EndOnly, Interpolant, Rows
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.record import Outputs, Step
from torchimplicit.path.solver import PathSolver
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


def kernel_for(solver: PathSolver, field: Field, outputs: int) -> tuple[Kernel, RawField]:
    """The kernel of a bound field, and the field as the kernel takes it.

    Raises:
        CompileError: the field works on something else than one real tensor.
    """
    joint = field.raw is not None and field.raw.time_shape == ()
    kernel = find_kernel(solver, field.raw, joint, outputs > 2)
    if kernel is None or field.raw is None:
        raise CompileError(
            "compile: got a state that is not one real tensor of single or double precision, times that decrease, "
            "autocast or vmap, expected none of them; try compile=False"
        )
    return kernel, field.raw


class ChunkedLoop(StepLoop):
    """A solve whose steps are made `CHUNK` at a time; see `StepLoop`."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._see_next()  # in memory of its own from the first chunk on: kernels are compiled for that

    def attempt(self) -> None:
        """Tries `CHUNK` steps of all samples; one where no more are allowed."""
        if self.limit - self.attempts < CHUNK:
            super().attempt()
            return
        state = self.state
        kernel, raw = kernel_for(self.solver, self.field, len(state.ts))
        slope = state.slope if state.slope is not None else torch.zeros_like(state.y)
        chunk = kernel.advance(
            raw.bound.f, raw.bound.args, state.t, state.h, state.y, slope, self.end, self.next_output, state.running,
            state.least, state.most, self.largest,
        )  # fmt: skip
        *facts, stuck = chunk.facts.tolist()
        self._follow(kernel, chunk, facts)
        state.h, state.most, state.slope = chunk.h, chunk.most, chunk.slope if kernel.plan.same else None
        state.tried, state.rejected = state.tried + chunk.tried, state.rejected + chunk.rejected
        state.ratio = torch.where((chunk.tried > chunk.rejected) | chunk.stuck, chunk.ratio, state.ratio)
        if any(facts[3::4]):
            self._stop(state.running & (state.t >= self.end), Status.CONVERGED)
        if stuck:
            finite = chunk.ratio.isfinite()
            self._stop(chunk.stuck & finite, Status.STEP_TOO_SMALL)
            self._stop(chunk.stuck & ~finite, Status.NON_FINITE)

    def _follow(self, kernel: Kernel, chunk: Chunk, facts: list[bool]) -> None:
        """Goes where the kernel went, step by step, past the outputs."""
        state, stages = self.state, len(kernel.plan.tableau.c)
        increments = [None] * CHUNK if chunk.increments is None else chunk.increments.unbind()
        for i, (stop, end, table) in enumerate(zip(chunk.stops.unbind(), chunk.ends.unbind(), increments, strict=True)):
            tries, moves, all_move, crosses = facts[4 * i : 4 * i + 4]
            self.attempts += tries
            self.field.nfev += tries * (stages - kernel.plan.same)
            if not moves:
                continue
            outputs = None
            if crosses:
                span = Span.of(state.t, stop, state.number)
                inside = _inside(kernel, self.field, table, span, state.y, end)
                outputs = self._outputs(stop, Stepped(end, None, None, inside), span.h)
            if self.phase is not None:
                self.phase.add(Step(state.t, stop, all_move, outputs, state.number), state.y)
            state.t, state.y = stop, end
            state.number += 1


def _inside(kernel: Kernel, field: Field, table: Tensor | None, span: Span, y: Tensor, end: Tensor) -> Interpolant:
    """The path inside a step; without increments only its end."""
    if table is None:
        return EndOnly(end)
    known = weights(kernel.plan.tableau, y.dtype, y.device)
    size = span.h.to(y.dtype).unsqueeze(1)
    return interpolant(known, Rows(table.unbind()), table[0], field, span, size, y, end, None)


def backward_in_chunks(phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
    """See `Engine.backward`."""
    field, ts, wanted, backwards = phase.field, phase.ts, phase.wanted, phase.retrace()
    kernel, raw = kernel_for(phase.solver, field, len(ts))
    totals: Gradients = [None] * len(wanted)
    met, later = False, None
    while group := list(islice(backwards, CHUNK)):
        steps, outputs, states = zip(*reversed(group), strict=True)
        rest = [steps[-1].stop] * (CHUNK - len(steps))  # no steps, to make the number even
        starts = torch.stack([*(step.start for step in steps), *rest])
        stops = torch.stack([*(step.stop for step in steps), *rest])
        with torch.enable_grad():
            y = states[0].detach().requires_grad_()
            ends, increments = kernel.again(raw.bound.f, raw.bound.args, starts, stops, y)
        some = group if later is None else [later, *group]
        if not met and len(some) > 1:  # one step will do to tell a function that is another one now
            (behind, _, led_to), (_, _, before) = some[:2]
            phase.meet(before, ends[len(some) - 2].detach(), led_to, behind)
            met = True
        later = group[-1]
        cotangents = [None if increments is None else torch.zeros_like(increments), torch.zeros_like(ends)]
        cotangents[1][-1] = cotangent
        extra = _pull_outputs(kernel, phase, steps, outputs, y.detach(), ends.detach(), increments, cotangents)
        made = [each for each in (increments, ends) if each is not None]
        cotangent, *found = torch.autograd.grad(
            made, [y, *wanted], [each for each in cotangents if each is not None], allow_unused=True
        )
        cotangent = cotangent if extra is None else cotangent + extra
        totals = summed(totals, found)
    return cotangent, totals


def _pull_outputs(
    kernel: Kernel, phase: PhaseBackward, steps: Sequence[Step], outputs: Sequence[Outputs | None], first: Tensor,
    ends: Tensor, increments: Tensor | None, cotangents: list,
) -> Tensor | None:  # fmt: skip
    """Adds the outputs' gradients to those of the states after each step and of the increments.

    Returns that of the state before the first step.
    """
    extra = None
    for i, (step, within) in enumerate(zip(steps, outputs, strict=True)):
        if within is None:
            continue
        samples, places = within.samples, within.places
        arriving = phase.grad[places, samples]
        if increments is None:
            phase.meet_outputs(within, first, ends[i][samples])
            cotangents[1][i].index_add_(0, samples, arriving)
            continue
        span = step.span
        leaves = [each.detach().requires_grad_() for each in (first if i == 0 else ends[i - 1], ends[i], increments[i])]
        y, end, table = leaves
        with torch.enable_grad():
            inside = _inside(kernel, phase.field, table, span, y, end)
            values = inside.at((phase.ts[places, samples] - step.start[samples]) / span.h[samples], samples)
        phase.meet_outputs(within, first, values.detach())
        by_y, by_end, by_table = torch.autograd.grad(values, leaves, arriving, allow_unused=True)
        cotangents[1][i] += by_end
        if by_table is not None:
            cotangents[0][i] += by_table
        if by_y is not None and i > 0:
            cotangents[1][i - 1] += by_y
        elif by_y is not None:
            extra = by_y
    return extra

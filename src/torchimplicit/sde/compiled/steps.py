"""Steps forward and their gradients by compiled kernels: what `sdeint(compile=True)` does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.core.compiled.kernel import CompileError, Fused
from torchimplicit.path.engine import Foreseen, PhaseBackward
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Phase, SharedSteps, Step
from torchimplicit.sde.ahead import is_finite, known_beforehand
from torchimplicit.sde.brownian import Keys
from torchimplicit.sde.compiled.kernel import Chunk, Kernel, find_kernel
from torchimplicit.sde.driver import Driver
from torchimplicit.sde.dynamics import NoisyField, RawEquation
from torchimplicit.sde.solver import SDESolver

LOOK = 8  # chunks between two reads by the host


def kernel_for(solver: SDESolver, field: NoisyField) -> tuple[Kernel, RawEquation]:
    """The kernel of a bound equation, and the equation as the kernel takes it.

    Raises:
        CompileError: the equation is of something else than one real tensor.
    """
    if field.equation is None:
        raise CompileError(
            "compile: got a state that is not one real tensor of single or double precision, autocast or vmap, "
            "expected none of them; try compile=False"
        )
    return find_kernel(solver, field.equation), field.equation


def foreseen(solver: SDESolver, ts: Tensor) -> Foreseen | None:
    """See `Engine.ahead`."""
    steps = known_beforehand(solver, ts)
    return None if steps is None else partial(_made, solver, steps)


class Row:
    """Calls of a kernel for the chunks of one solve, the first of which checks what all take for granted.

    Args:
        function: of the kernel.
        raw: the equation.
        keys: of the noise.
        more: tensors that the function takes before the state.
    """

    def __init__(self, function: Fused, raw: RawEquation, keys: Keys, *more: Any):
        self.function, self.known = function, (raw.parts, raw.args, keys.seeds, keys.channels, *more)
        self._again: Callable[..., tuple] | None = None

    def __call__(self, y: Tensor, chunk: Chunk, *more: Tensor) -> tuple:
        """What the function finds from states `(B, n)`; `more` tensors are taken behind the chunk."""
        tensors = y, chunk.starts, chunk.stops, *chunk.words, *more
        if self._again is not None:
            return self._again(*tensors)
        count = len(chunk.words)

        def inputs(y: Tensor, starts: Tensor, stops: Tensor, *others: Tensor) -> tuple:
            return *self.known, y, Chunk(starts, stops, others[:count]), *others[count:]

        found, self._again = self.function.begin(inputs, *tensors)
        return found


def _made(
    solver: SDESolver, steps: SharedSteps, field: Field, y: Tensor, phase: Phase | None
) -> tuple[Tensor, int] | None:
    """See `Foreseen`."""
    assert isinstance(field, NoisyField)
    field.look(steps.times[0].expand(len(y)), y)
    kernel, raw = kernel_for(solver, field)
    total, count, values, landings = len(steps), kernel.plan.count, [y], steps.landings
    keys, chunks = _chunks(field.driver, steps, count)
    row = Row(_function(kernel, steps), raw, keys)
    states = None if phase is None else Phase(None, phase.limit)
    places = [landings.get(number + 1) for number in range(len(chunks) * count)]
    for number, chunk in enumerate(chunks):
        if states is not None:
            states.add(Step(chunk.starts, chunk.stops, True), y)
        ends, evaluations = row(y, chunk)
        first = number * count
        field.nfev += evaluations * min(count, total - first) // count
        values += [
            ends[min(i, len(ends) - 1)] for i, place in enumerate(places[first : first + count]) if place is not None
        ]
        y = ends[-1]
        if (number % LOOK == LOOK - 1 or number == len(chunks) - 1) and not is_finite(y.detach()):
            return None
    if phase is not None and states is not None:
        phase.together, phase.steps = count, steps
        phase.states = {k * count: each for k, each in states.states.items()}
    return torch.stack(values), total


def _function(kernel: Kernel, steps: SharedSteps) -> Fused:
    """What makes steps and tells of all states that somebody wants to know; of kernels the last is each one's own."""
    count, total = kernel.plan.count, len(steps)
    return kernel.leap if all(k % count == 0 or k == total for k in steps.landings) else kernel.advance


def _chunks(driver: Driver, steps: SharedSteps, count: int) -> tuple[Keys, list[Chunk]]:
    """What kernels are told of steps, so many at a time; some at the end may be none."""
    starts, stops = steps.chunks(count)
    keys = driver.keys(len(starts) * count)
    words = zip(*(each.view(len(starts), -1).unbind() for each in keys.words), strict=True)
    return keys, list(map(Chunk, starts, stops, words))


def backward_in_chunks(phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
    """See `Engine.backward`; of steps that were made by kernels."""
    field, solver, record = phase.field, phase.solver, phase.phase
    assert isinstance(field, NoisyField)
    assert isinstance(solver, SDESolver)
    kernel, raw = kernel_for(solver, field)
    field.prepare(record.steps[0].start, record.states[0])
    count = kernel.plan.count
    totals: Gradients = [None] * len(phase.wanted)
    steps = record.steps
    assert isinstance(steps, SharedSteps)
    keys, chunks = _chunks(field.driver, steps, count)
    coarse = Phase(None, record.limit, [Step(each.starts, each.stops, True, number=k) for k, each in enumerate(chunks)])
    coarse.states = {number // count: state for number, state in record.states.items()}
    again, pull = Row(_function(kernel, steps), raw, keys), Row(kernel.pull, raw, keys, tuple(phase.wanted))
    arriving, met = cotangent.new_zeros(count, *cotangent.shape), False
    led_to = None if phase.known is None else phase.known[-1]
    for number, y in coarse.backwards(lambda step, y: again(y, chunks[step.number])[0][-1]):
        for i in range(count):
            if (place := steps.landings.get(number * count + i + 1)) is not None:
                arriving[i] = phase.grad[place]
        arriving[-1] += cotangent
        with torch.enable_grad():
            cotangent, *found = pull(y.detach().requires_grad_(), chunks[number], arriving)
        if led_to is not None and not met:  # see `Engine.backward`; gradients may need neither states nor noise
            phase.meet(y, again(y, chunks[number])[0][-1], led_to)
            met = True
        led_to = y
        arriving.zero_()
        totals = summed(totals, found)
    return cotangent, totals

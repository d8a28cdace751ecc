"""Steps forward and their gradients by compiled kernels: what `sdeint(compile=True)` does."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.path.compiled.kernel import CompileError
from torchimplicit.path.engine import Foreseen, PhaseBackward
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Phase, SharedSteps, Step
from torchimplicit.sde.ahead import is_finite, known_beforehand
from torchimplicit.sde.compiled.kernel import Kernel, find_kernel
from torchimplicit.sde.driver import Driver
from torchimplicit.sde.dynamics import NoisyField, RawEquation
from torchimplicit.sde.solver import SDESolver

LOOK = 8  # chunks between two reads by the host


class Chunk(NamedTuple):
    """What a kernel is told of some steps; see `Kernel`."""

    seeds: Tensor
    channels: tuple[Tensor, ...]
    words: tuple[Tensor, ...]
    starts: Tensor
    stops: Tensor


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
    known = known_beforehand(solver, ts)
    return None if known is None else partial(_steps, solver, *known)


def _steps(
    solver: SDESolver, times: Tensor, h: Tensor, landings: dict[int, int], field: Field, y: Tensor, phase: Phase | None
) -> tuple[Tensor, int] | None:
    """See `Foreseen`."""
    assert isinstance(field, NoisyField)
    total, graph = len(h), field.look(times[0].expand(len(y)), y) or y.requires_grad
    graph &= torch.is_grad_enabled()
    kernel, raw = kernel_for(solver, field)
    chunks = _chunks(field.driver, times.squeeze(1), kernel.plan.count)
    function, count, values = kernel.again if graph else kernel.advance, kernel.plan.count, [y]
    states = None if phase is None else Phase(None, phase.limit)
    places = [landings.get(number + 1) for number in range(len(chunks) * count)]
    if graph and not y.requires_grad:  # or the first chunk would be compiled on its own
        y = y.detach().requires_grad_()
    for number, chunk in enumerate(chunks):
        if states is not None:
            states.add(Step(chunk.starts, chunk.stops, True), y)
        ends, evaluations = function(raw.parts, raw.args, y, *chunk)
        field.nfev += evaluations * min(count, total - number * count) // count
        ends, first = ends.unbind(), number * count
        values += [end for end, place in zip(ends, places[first : first + count], strict=True) if place is not None]
        y, last = ends[-1], ends[-1].detach()
        if (number % LOOK == LOOK - 1 or number == len(chunks) - 1) and not is_finite(last):
            return None
    if phase is not None and states is not None:
        phase.together, phase.steps = count, SharedSteps(times, h, landings, len(y))
        phase.states = {k * count: each for k, each in states.states.items()}
    return torch.stack(values), total


def _chunks(driver: Driver, times: Tensor, count: int) -> list[Chunk]:
    """What kernels are told of the steps between times, `(S + 1,)`; some at the end may be none."""
    total = len(times) - 1
    number = -(-total // count)
    rest = times[(number - 1) * count].expand(number * count - total)
    starts, stops = (torch.cat((each, rest)).view(number, count).unbind() for each in (times[:-1], times[1:]))
    seeds, channels, every = driver.keys(number * count)
    words = zip(*(each.view(number, -1).unbind() for each in every), strict=True)
    return [Chunk(seeds, channels, *each) for each in zip(words, starts, stops, strict=True)]


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
    chunks = _chunks(field.driver, steps.times.squeeze(1), count)
    coarse = Phase(None, record.limit, [Step(each.starts, each.stops, True, number=k) for k, each in enumerate(chunks)])
    coarse.states = {number // count: state for number, state in record.states.items()}

    def made(number: int, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return y, kernel.again(raw.parts, raw.args, y, *chunks[number])[0]

    # A graph is made and forgotten where only states are wanted: without one it would be another kernel.
    for number, y in coarse.backwards(lambda step, y: made(step.number, y)[1][-1].detach()):
        y, ends = made(number, y)
        arriving = torch.zeros_like(ends)
        arriving[-1] = cotangent
        for i in range(count):
            if (place := steps.landings.get(number * count + i + 1)) is not None:
                arriving[i] += phase.grad[place]
        cotangent, *found = torch.autograd.grad([ends], [y, *phase.wanted], [arriving], allow_unused=True)
        totals = summed(totals, found)
    return cotangent, totals

"""Steps towards a fixed point by compiled kernels, a few a call: what `fixed_point(compile=True)` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.problem import Problem, Residual
from torchimplicit.solve.anderson import Anderson, AndersonState
from torchimplicit.solve.compiled.judge import go_on, hand_back, standing_of
from torchimplicit.solve.compiled.kernel import Chunk, Now, Plan, find_kernel, first_method
from torchimplicit.solve.history import Ring
from torchimplicit.solve.look import Start
from torchimplicit.solve.loop import Solver
from torchimplicit.solve.picard import PicardState
from torchimplicit.solve.polyalgorithm import Polyalgorithm, PolyalgorithmState, Turn
from torchimplicit.solve.samples import Samples


def advance(problem: Problem, solver: Solver, residual: Residual, start: Start, samples: Samples) -> tuple[Any, int]:
    """Steps in whole chunks as far as that goes, from a start that has been judged; the loop goes on from there.

    That is the end where all samples have stopped. It is on the way where fewer steps are left than a chunk has, where
    another method's turn has come, where so few samples are left that going on without the others pays, and where norms
    must be measured with more care than kernels take.

    Args:
        problem: the condition.
        solver: the method, one that can be compiled.
        residual: the condition's function as this solve has it.
        start: where to start.
        samples: what is known of the samples there.

    Returns:
        The solver's state, and the number of its step.

    Raises:
        CompileError: the function cannot be compiled.
    """
    plan = Plan.of(solver, problem)
    most = min(solver.max_steps, solver.after) if isinstance(solver, Polyalgorithm) else solver.max_steps
    if plan.chunk > most:
        return resumed(solver, start, (), 0), 0
    bound: Any = residual.bound
    z, limit, zero = start.z.contiguous(), samples.limit, torch.zeros((), dtype=torch.int64, device=start.z.device)
    tolerances = z.new_tensor((samples.rtol, samples.absolute))
    now = Now(z, start.residual.contiguous(), zero, standing_of(samples, z))
    past = tuple(torch.zeros_like(z) for _ in range(2 * plan.past))
    kernel = find_kernel(problem.f, plan)
    flat, again = kernel.begin(lambda *where: (bound.f, bound.args, limit, tolerances, *where), *now.flat, *past)
    step = 0
    while True:
        residual.nfev += plan.chunk
        chunk = Chunk.of(flat)
        running, doubt, failed, apart = chunk.facts.tolist()
        if doubt:
            break
        past = (*past, now.residual, *chunk.past)[-2 * plan.past :] if plan.past else ()
        step, now = step + plan.chunk, chunk.now
        hand_back(samples, now.z, now.standing, (chunk.size, chunk.scale), step, (running, failed, apart))
        if not running:
            return Start(now.z, now.residual), step
        if step + plan.chunk > most or (samples.few and residual.narrow is not None):
            break
        flat = again(*now.flat, *past)
    if step:
        go_on(samples)
    return resumed(solver, Start(now.z, now.residual), past, step), step


def resumed(solver: Solver, at: Start, past: Sequence[Tensor], step: int) -> Any:
    """A solver's state after so many steps.

    Args:
        solver: one that can be compiled.
        at: where they have led.
        past: residuals and targets on the way there, in turn, oldest first.
        step: how many.
    """
    if isinstance(solver, Polyalgorithm):
        method = first_method(solver)
        inner = resumed(method, at, past, step)
        return PolyalgorithmState(inner.z, inner.residual, Turn(method, inner, step))
    if not isinstance(solver, Anderson):
        return PicardState(*at)
    ring = Ring(at.z, solver.memory, solver.ridge)
    return AndersonState(at.z, ring.resume(past[::2], past[1::2], at.residual, step), ring)

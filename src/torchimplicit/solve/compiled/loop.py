"""Steps towards a fixed point by compiled kernels, a few a call: what `fixed_point(compile=True)` does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.problem import Problem, Residual
from torchimplicit.solve.anderson import Anderson
from torchimplicit.solve.compiled.judge import go_on, hand_back, standing_of
from torchimplicit.solve.compiled.kernel import Chunk, Now, Plan, find_kernel, first_method
from torchimplicit.solve.loop import Solver
from torchimplicit.solve.polyalgorithm import Polyalgorithm, Turn
from torchimplicit.solve.samples import Samples


def advance(problem: Problem, solver: Solver, residual: Residual, state: Any, samples: Samples) -> tuple[Any, int]:
    """Steps in whole chunks as far as that goes, from a start that has been judged; the loop goes on from there.

    That is the end where all samples have stopped. It is on the way where fewer steps are left than a chunk has, where
    another method's turn has come, where so few samples are left that going on without the others pays, and where norms
    must be measured with more care than kernels take.

    Args:
        problem: the condition.
        solver: the method, one that can be compiled.
        residual: the condition's function as this solve has it.
        state: the solver's at the start.
        samples: what is known of the samples there.

    Returns:
        The solver's state, and the number of its step.

    Raises:
        CompileError: the function cannot be compiled.
    """
    plan = Plan.of(solver, problem)
    most = min(solver.max_steps, solver.after) if isinstance(solver, Polyalgorithm) else solver.max_steps
    if not samples.any_running or plan.chunk > most:
        return state, 0
    bound: Any = residual.bound
    z, limit = state.z.contiguous(), samples.limit
    tolerances = z.new_tensor((samples.rtol, samples.absolute))
    now = Now(
        z, state.residual.contiguous(), torch.zeros((), dtype=torch.int64, device=z.device), *standing_of(samples, z)
    )
    past = tuple(torch.zeros_like(z) for _ in range(2 * plan.past))
    flat, again = find_kernel(problem.f, plan).begin(
        lambda *where: (bound.f, bound.args, limit, tolerances, *where), *now, *past
    )
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
        if not running or step + plan.chunk > most or (samples.few and residual.narrow is not None):
            break
        flat = again(*now, *past)
    if not step:
        return state, 0
    if samples.any_running:
        go_on(samples)
    return _state(solver, state, now, past, step), step


def _state(solver: Solver, state: Any, now: Now, past: tuple[Tensor, ...], step: int) -> Any:
    """The solver's state, from which it can go on."""
    if isinstance(solver, Polyalgorithm):
        turn = state.turn
        inner = _state(first_method(solver), turn.state, now, past, step)
        return state._replace(z=inner.z, residual=inner.residual, turn=Turn(turn.method, inner, step))
    residual = now.residual
    if isinstance(solver, Anderson):
        residual = state.history.resume(past[::2], past[1::2], residual, step)
    return state._replace(z=now.z, residual=residual)

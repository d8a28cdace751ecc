"""Who makes the first steps of a solve: the loop, or kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from torchimplicit.core import transforms
from torchimplicit.core.compiled.kernel import CompileError
from torchimplicit.core.compiled.worth import SMALL, check_word, pays, spend
from torchimplicit.core.problem import FixedPoint, Problem, Residual
from torchimplicit.solve.compiled.kernel import LONGEST, WIDEST, can_compile
from torchimplicit.solve.compiled.loop import advance, resumed
from torchimplicit.solve.look import Start
from torchimplicit.solve.loop import Solver
from torchimplicit.solve.samples import Samples

Ahead = Callable[[Residual, Start, Samples], tuple[Any, int]]


def check_compile(compile: Any, solver: Solver, plain: bool) -> None:
    """Refuses to compile what cannot be.

    Args:
        compile: what the user wants.
        solver: the method.
        plain: whether this is a solve of nothing but its solution, by no prepared map, and not unrolled.

    Raises:
        ValueError: neither a bool nor "auto"; or True for more than the solution or another kind of solver.
    """
    check_word(compile)
    if compile is not True:
        return
    if not plain:
        raise ValueError(
            "compile: got True with trace, save_steps, Unrolled() or a splitting, expected a solve of nothing but its "
            "solution; try compile=False"
        )
    if not can_compile(solver):
        raise ValueError(
            f"compile: got True with {solver}, expected Anderson with window <= {WIDEST} and period <= {LONGEST}, "
            "Picard, or a Polyalgorithm that begins with one of them, and check_every=1; try Anderson(), or "
            "compile=False"
        )


def choose_ahead(compile: bool | str, problem: Problem, solver: Solver, plain: bool) -> Ahead | None:
    """What makes the first steps of a solve in place of the loop; None for nothing.

    Args:
        compile: what the user wants; "auto" as `fixed_point` tells it.
        problem: the condition.
        solver: the method.
        plain: see `check_compile`.

    Raises:
        CompileError: True for a state that kernels do not take.
    """
    if compile is False:
        return None
    fits = _fits(problem)
    if compile is True:
        if not fits:
            raise CompileError(
                "compile: got a state that is not one real tensor of single or double precision, autocast, or a "
                "transform such as vmap, expected none of them; try compile=False"
            )
        return partial(advance, problem, solver)
    small = problem.layout.batch * problem.layout.width <= SMALL
    wins = plain and fits and small and can_compile(solver) and pays(problem.f)
    return partial(_if_possible, problem, solver) if wins else None


def _fits(problem: Problem) -> bool:
    """Whether kernels take this state, as things are."""
    return (
        isinstance(problem, FixedPoint)
        and problem.layout.plain
        and problem.layout.dtype in (torch.float32, torch.float64)
        and not problem.autocast.enabled
        and not transforms.active()
    )


def _if_possible(
    problem: Problem, solver: Solver, residual: Residual, start: Start, samples: Samples
) -> tuple[Any, int]:
    """`advance`; nothing where the function cannot be compiled."""
    try:
        return advance(problem, solver, residual, start, samples)
    except CompileError:
        spend(problem.f, math.inf)
        return resumed(solver, start, (), 0), 0

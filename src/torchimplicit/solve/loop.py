"""The one iteration loop, over whatever solver, and what every solver has in common.

A solver proposes iterates; `Samples` (of roots and minima `Claims`) judges them and says when each stops. Where the
problem can be narrowed to some of its samples, the loop goes on with those that still run once they are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.migration import Explained
from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Report
from torchimplicit.core.tree import norm
from torchimplicit.solve.claims import Claims
from torchimplicit.solve.coupling import look_again
from torchimplicit.solve.look import Start
from torchimplicit.solve.samples import DIVERGENCE, PATIENCE, Samples

# By how many roundings, and at most which part, the residual of samples alone may differ from that beside the others.
ROUNDINGS, PART = 100.0, 0.01
PART_OF_RTOL = 0.01  # that the absolute tolerance of fixed points is by default


class State(Protocol):
    """What every solver's state has: the iterate and its residual, both `(B, n)`."""

    z: Tensor
    residual: Tensor


@dataclass(frozen=True, kw_only=True)
class Solver(Explained):
    """Base of the solvers: when to stop.

    A sample of a fixed point has converged when `rms(residual) <= atol + rtol * rms(z)`. One of a root or a minimum,
    whose residual is in units of its own, when the Newton step from it is no longer than `atol + rtol * |z|`, unknown
    by unknown (by RMS beyond 256 unknowns); where rounding allows no such step, when it is as short as rounding makes
    it, to half of the digits at least. These tests do not change when unknowns, residuals or energies are scaled.

    A solver adds `init(problem, z) -> state` and `step(problem, state) -> state`, where `problem(z)` is the residual
    `(B, n)` of the flat iterate `(B, n)` and the state has the fields `z` and `residual`. Steps must treat samples
    independently. An iterate must stay untouched until the next one has been judged; it may be overwritten later.
    Whatever else a state holds is a nest of tensors `(B, ...)`, or of objects with `take(rows)` and `put(rows, other)`.

    Args:
        rtol: relative tolerance, a number >= 0.
        atol: absolute tolerance, a number >= 0, in the units of the unknowns; None is a hundredth of `rtol` for fixed
            points, and 0 for roots and minima: an unknown that is zero there wants an `atol` in its own units, or
            else is followed to rounding.
        max_steps: limit of steps; 0 only evaluates the residual at the start.
        check_every: steps between looks at the residuals. A look makes the host wait for the device, so on an
            accelerator a larger number is faster, for up to so many steps too many.

    Attributes:
        patience: looks without a better residual before a sample counts as stagnated; the method's own, no option.
        divergence: growth of the residual over its first value that counts as divergence; the same.
        waits: steps that a look at a root or minimum may wait for those at others; the same.
    """

    patience: ClassVar[int] = PATIENCE
    divergence: ClassVar[float] = DIVERGENCE
    waits: ClassVar[int] = 0

    rtol: float = 1e-4
    atol: float | None = None
    max_steps: int = 50
    check_every: int = 1

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            fine = is_number(value) and 0 <= value < math.inf
            require(self, name, fine or (name == "atol" and value is None), "a finite number >= 0")
        require_count(self, "max_steps", least=0)
        require_count(self, "check_every")

    @property
    def absolute(self) -> float:
        """The absolute tolerance of a fixed point's residual."""
        return PART_OF_RTOL * self.rtol if self.atol is None else self.atol

    @property
    def learns(self) -> bool:
        """Whether a solve leaves `knowledge` of the inverse Jacobian: an object with `inverse() -> LowRank`."""
        return False

    def init(self, problem: Residual, z: Tensor) -> Any:
        """The state at the start; evaluates the residual there once."""
        raise NotImplementedError

    def step(self, problem: Residual, state: Any) -> Any:
        """The state one step on."""
        raise NotImplementedError

    def resume(self, problem: Residual, z: Tensor, knowledge: Any) -> Any:
        """The state at the start, with what `knowledge` of an earlier solve says; most solvers have no use for it."""
        return self.init(problem, z)

    def retire(self, state: Any, rows: Tensor) -> None:
        """Told which samples have stopped while others go on: what it does to them from now on is worth nothing."""

    def stuck(self, state: Any) -> Tensor | None:
        """Which samples the method cannot move any more, `(B,)` bool; None where it does not know."""
        return None

    def knowledge(self, state: Any) -> Any:
        """What is worth keeping of a solve beyond its solution; None for most solvers."""
        return None


@dataclass(frozen=True)
class Result:
    """Where the loop ended.

    Attributes:
        z: the best or converged iterate of every sample, `(B, n)`.
        report: how it went.
        knowledge: see `Solver.knowledge`.
        saved: the iterates asked for, `(B, n)` each, by step.
        jacobian: an energy's Hessians at converged iterates, `(B, n, n)`, zero at others; None where none was built.
        ran: how far samples that failed have run, which a solve that goes on from them must know; None for none.
    """

    z: Tensor
    report: Report
    knowledge: Any = None
    saved: dict[int, Tensor] = field(default_factory=dict)
    jacobian: Tensor | None = None
    ran: Any = None


def iterate(
    solver: Solver,
    problem: Residual,
    z: Tensor,
    trace: bool = False,
    save_steps: Sequence[int] = (),
    knowledge: Any = None,
    settled: bool = False,
    ran: Any = None,
    ahead: Callable[[Residual, Start, Samples], tuple[Any, int]] | None = None,
) -> Result:
    """Runs a solver from `z` until every sample has stopped or the steps are used up.

    A sample's value, status and steps do not depend on its batch mates: it stops on its own, the iterate that it
    stopped at is set aside, and what the solver does to it afterwards is not looked at.

    Args:
        solver: the method and its tolerances.
        problem: the residual.
        z: start, `(B, n)`.
        trace: keep every step's residuals.
        save_steps: steps whose iterates to keep; beyond the last step they are the result's.
        knowledge: of an earlier solve with the same solver.
        settled: whether the start may be a solution already: then it is looked at as one.
        ran: what the earlier solve that ended there said of how far it had run.
        ahead: makes the first steps of a fixed point and judges them; gives the state and the number of its step.

    Returns:
        The iterate that met the tolerance, or the best one seen, of every sample, and how it went.
    """
    if ahead is not None:
        state: Any = Start(z, problem(z))
    else:
        state = solver.init(problem, z) if knowledge is None else solver.resume(problem, z, knowledge)
    if problem.comparable:
        samples = Samples(solver, state, problem.eps, save_steps)
    else:
        samples = Claims(solver, state, problem.eps, save_steps, settled, ran)
    step = 0
    if ahead is not None and _judge(solver, problem, state, samples, step):
        state, step = ahead(problem, state, samples)
    state, step = _run(solver, problem, state, samples, step)
    samples.settle()
    answer = samples.answer(state.z)
    look_again(samples, problem, state, answer)
    saved = {chosen: samples.saved.get(chosen, answer) for chosen in save_steps}
    report = samples.report(step, problem.nfev, trace)
    return Result(answer, report, solver.knowledge(state), saved, samples.jacobian, samples.ran())


def _run(solver: Solver, problem: Residual, state: Any, samples: Samples, step: int) -> tuple[Any, int]:
    """Steps until no sample runs or the steps are used up; returns the last state and its step."""
    stride = 1 if samples.save_steps else solver.check_every
    going = _judge(solver, problem, state, samples, step)
    while going and step < solver.max_steps:
        if samples.few and problem.narrow is not None:
            narrowed = _narrow(problem, state, samples)
            if narrowed is not None:
                step = _run_narrowed(solver, problem, state, samples, narrowed, step)
                break
        proceed = problem
        if torch.is_grad_enabled() and not samples.all_running:
            proceed, state = _hold(problem, state, samples)
        for _ in range(min(stride, solver.max_steps - step)):
            state = solver.step(proceed, state)
            step += 1
        going = _judge(solver, problem, state, samples, step)
    return state, step


def _hold(problem: Residual, state: Any, samples: Samples) -> tuple[Residual, Any]:
    """A problem and a state in which the samples that have stopped stay where they stopped, without a gradient.

    Where every step is differentiated, what becomes of a stopped sample matters: it may overflow, and zero times NaN
    would reach the gradients of shared tensors.
    """
    if not hasattr(state, "_replace"):
        return problem, state
    assert samples.kept is not None
    running, held = samples.running.unsqueeze(1), samples.kept.detach()

    def evaluate(z: Tensor, out: Tensor | None) -> Tensor:
        residual = problem(torch.where(running, z, held))
        samples.beside = residual.detach()
        return torch.where(running, residual, z - held)

    z, residual = torch.where(running, state.z, held), torch.where(running, state.residual, 0)
    held_problem = Residual(evaluate, problem.eps)
    held_problem.comparable = problem.comparable
    return held_problem, state._replace(z=z, residual=residual)


def _judge(solver: Solver, problem: Residual, state: Any, samples: Samples, step: int) -> bool:
    """Looks at the iterate of a step; returns whether any sample still runs."""
    before = samples.running
    going = samples.judge(step, state, problem, solver.stuck(state))
    if going and samples.running is not before and type(solver).retire is not Solver.retire:
        solver.retire(state, torch.nonzero(before & ~samples.running).flatten())
    return going


def _narrow(problem: Residual, state: Any, samples: Samples) -> tuple[Tensor, Residual, Any] | None:
    """The running samples, their problem and their state, if that problem is the same one."""
    assert problem.narrow is not None
    if not all(isinstance(part, Tensor | int | float) or hasattr(part, "take") for part in pytree.tree_leaves(state)):
        problem.narrow = None  # a solver that does not say how
        return None
    rows = torch.nonzero(samples.running).flatten()
    narrow, inner = problem.narrow(rows), pytree.tree_map(lambda part: taken(part, rows), state)
    # Proof that nothing couples the samples: their residual is what it was beside the others, but for rounding.
    # At every narrowing: what goes by the place in the batch (a dropout mask) is the same for the first few samples.
    problem.nfev += 1
    if not _same(narrow, inner, problem.eps):
        problem.narrow = None
        return None
    return rows, narrow, inner


def _same(narrow: Residual, inner: Any, eps: float) -> bool:
    """Whether some samples alone have the residual that they had beside the others."""
    try:
        residual = narrow(inner.z)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # an argument that is not a sample's own was cut, or one that is was not: its shape does not fit
    if residual.shape != inner.residual.shape:
        return False
    play = min(ROUNDINGS * eps, PART)
    return bool((norm(residual - inner.residual) <= play * (norm(inner.z) + norm(inner.residual))).all())


def _run_narrowed(
    solver: Solver,
    problem: Residual,
    state: Any,
    samples: Samples,
    narrowed: tuple[Tensor, Residual, Any],
    step: int,
) -> int:
    """Runs the running samples alone to their end, and puts them back among the others."""
    rows, narrow, inner = narrowed
    some = samples.take(rows)
    before = narrow.nfev
    inner, step = _run(solver, narrow, inner, some, step)
    problem.nfev += narrow.nfev - before
    samples.put(rows, some, some.answer(inner.z))
    pytree.tree_map(lambda part, new: _put(part, rows, new), state, inner)
    return step


def taken(part: Any, rows: Tensor) -> Any:
    """What a part of a solver's state is for some of the samples."""
    if isinstance(part, Tensor):
        return part[rows]
    return part.take(rows) if hasattr(part, "take") else part


def _put(part: Any, rows: Tensor, new: Any) -> None:
    if hasattr(part, "put") and not isinstance(part, Tensor):
        part.put(rows, new)

"""The one iteration loop: stopping per sample, limits, statuses, the best iterate, the trace.

A solver proposes iterates; this loop judges them. Each step costs one comparison of every sample's residual with its
tolerance and its best residual so far, and one read by the host. Only when some sample stops or gets worse does the
loop look closer and set iterates aside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import norm

PATIENCE = 20  # steps without a better residual before a sample counts as stagnated,
PATIENCE_AT_FLOOR = 3  # or this few, when its residual is within FLOOR roundings of the state's size
FLOOR = 10.0
SLACK = 1 + 1e-6  # relative play in comparing a residual with the tolerance and with the best one
DIVERGENCE = 1e6  # growth of the residual over its first value that counts as divergence


class State(Protocol):
    """What every solver's state has: the iterate and its residual, both `(B, n)`."""

    z: Tensor
    residual: Tensor


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Base of the solvers: when to stop. A sample has converged when `rms(residual) <= atol + rtol * rms(z)`.

    A solver adds `init(problem, z) -> state` and `step(problem, state) -> state`, where `problem(z)` is the residual
    `(B, n)` of the flat iterate `(B, n)` and the state has the fields `z` and `residual`. Steps must treat samples
    independently. An iterate must stay untouched until the next one has been judged; it may be overwritten later.

    Args:
        rtol: relative tolerance, a number >= 0.
        atol: absolute tolerance, a number >= 0.
        max_steps: limit of steps; 0 only evaluates the residual at the start.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_steps: int = 50

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            require(self, name, isinstance(value, float | int) and 0 <= value < math.inf, "a finite number >= 0")
        require(self, "max_steps", isinstance(self.max_steps, int) and self.max_steps >= 0, "an integer >= 0")

    def init(self, problem: Residual, z: Tensor) -> Any:
        """The state at the start; evaluates the residual there once."""
        raise NotImplementedError

    def step(self, problem: Residual, state: Any) -> Any:
        """The state one step on."""
        raise NotImplementedError


@dataclass(frozen=True)
class Result:
    """Where the loop ended: the best or converged iterate of every sample `(B, n)`, and the report."""

    z: Tensor
    report: Report


def iterate(solver: Solver, problem: Residual, z: Tensor, trace: bool = False, name: str = "solve") -> Result:
    """Runs a solver from `z` until every sample has stopped or the steps are used up.

    A sample's value, status and steps do not depend on its batch mates: it stops on its own, the iterate that it
    stopped at is set aside, and what the solver does to it afterwards is not looked at.

    Args:
        solver: the method and its tolerances.
        problem: the residual.
        z: start, `(B, n)`.
        trace: keep every step's residuals.
        name: for the report.

    Returns:
        The iterate that met the tolerance, or the best one seen, of every sample, and how it went.
    """
    state = solver.init(problem, z)
    samples = _Samples(solver, state, problem.eps)
    step = 0
    while samples.judge(step, state) and step < solver.max_steps:
        state = solver.step(problem, state)
        step += 1
    return Result(samples.answer(state.z), samples.report(step, problem.nfev, trace, name))


class _Samples:
    """What the loop knows of every sample: `best` residual norms, `kept` iterates that were put aside.

    `bar` is what a residual must get below to count as better: a little under the best one, so that rounding is no
    progress, and minus infinity once a sample has stopped, so that it takes part in nothing any more.
    """

    def __init__(self, solver: Solver, state: State, eps: float):
        batch, width = state.z.shape
        self.size, self.eps = math.sqrt(width), eps
        self.rtol = SLACK * solver.rtol
        # The tiny addition lets a residual of exactly zero arrive at a tolerance of zero.
        self.atol = state.z.new_full((batch,), SLACK * solver.atol * self.size + torch.finfo(state.z.dtype).tiny)
        self.bar = self.best = self.limit = state.z.new_full((batch,), math.inf)
        self.status = torch.full((batch,), int(Status.MAX_STEPS), device=state.z.device)
        self.steps = self.stalled = torch.zeros_like(self.status)  # stalled: steps since the best residual
        self.running = torch.ones_like(self.status, dtype=torch.bool)
        self.latest = self.running  # the latest iterate is the sample's best and not yet put aside
        self.all_running, self.any_running, self.all_latest, self.any_stalled = True, True, True, False
        self.kept: Tensor | None = None
        self.previous = state.z
        self.history: list[Tensor] = []

    def judge(self, step: int, state: State) -> bool:
        """Looks at the iterate of a step; returns whether any sample still runs."""
        z = state.z
        with torch.no_grad():
            residual, scale = norm(state.residual), norm(z)
        self.history.append(residual)
        tolerance = torch.add(self.atol, scale, alpha=self.rtol)
        if step == 0:
            self.limit = DIVERGENCE * torch.maximum(residual, tolerance)
        # The one read by the host: nothing to do while every running sample improves and none has arrived.
        if self.all_running and torch.equal(residual.clamp(tolerance, self.bar), residual):
            self.best = residual
            if not self.all_latest:
                self.latest, self.all_latest = self.running, True
            if self.any_stalled:
                self.stalled, self.any_stalled = torch.zeros_like(self.stalled), False
        else:
            self._look_closer(step, z, residual, tolerance, scale)
        self.bar = self.best / SLACK if self.all_running else torch.where(self.running, self.best / SLACK, -math.inf)
        self.previous = z
        return self.any_running

    def _look_closer(self, step: int, z: Tensor, residual: Tensor, tolerance: Tensor, scale: Tensor) -> None:
        improves = residual < self.bar
        # Only a best iterate arrives: a growing iterate loosens its own relative tolerance, in the end to infinity.
        arrived = improves & (residual <= tolerance) & (tolerance < math.inf)
        failing = self.running & ~improves
        status, stops = int(Status.CONVERGED), arrived
        if bool(failing.any()):
            self.stalled, self.any_stalled = torch.where(failing, self.stalled + 1, 0), True
            lost = failing & self.latest
            if bool(lost.any()):  # a best iterate about to be overwritten: it is the previous one, still at hand
                self._keep(lost, self.previous)
            failure = self._failure(residual, scale)
            status = torch.where(failing, failure, status)
            stops = stops | (failing & (failure != Status.MAX_STEPS))
        elif self.any_stalled:
            self.stalled, self.any_stalled = torch.zeros_like(self.stalled), False
        self.latest, self.all_latest = improves & self.running, False
        self.best = torch.where(improves, residual, self.best)
        if bool(stops.any()):
            self._keep(stops & self.latest, z)
            self.status = torch.where(stops, status, self.status)
            self.steps = torch.where(stops, step, self.steps)
            go_on = ~stops
            self.running, self.latest, self.all_running = self.running & go_on, self.latest & go_on, False
            self.any_running = bool(self.running.any())

    def _failure(self, residual: Tensor, scale: Tensor) -> Tensor:
        """Why samples that do not improve stop, if they do."""
        floor = FLOOR * self.eps * scale
        patience = torch.where(residual <= floor, PATIENCE_AT_FLOOR, PATIENCE)
        status = torch.where(self.stalled >= patience, int(Status.STAGNATED), int(Status.MAX_STEPS))
        status = torch.where(residual > self.limit, int(Status.DIVERGED), status)
        return torch.where((residual + scale).isfinite(), status, int(Status.NON_FINITE))

    def _keep(self, which: Tensor, z: Tensor) -> None:
        self.kept = z.clone() if self.kept is None else torch.where(which.unsqueeze(1), z, self.kept)

    def answer(self, z: Tensor) -> Tensor:
        """Every sample's converged or best iterate, `(B, n)`."""
        if self.kept is None:
            return z.clone() if z._is_view() else z  # not a view that keeps a solver's whole history alive
        return torch.where(self.latest.unsqueeze(1), z, self.kept)

    def report(self, step: int, nfev: int, trace: bool, name: str) -> Report:
        """The report, once the loop has ended."""
        steps = torch.where(self.running, step, self.steps)
        rows = None
        if trace:
            rows = torch.stack(self.history) / self.size
            passed = torch.arange(step + 1, device=steps.device).unsqueeze(1) > steps
            rows = rows.masked_fill(passed, math.nan)
        return Report(self.status, steps, self.best / self.size, nfev, name, trace=rows)

"""When an iterate is a root or a minimum: claimed where steps become short, granted by the Newton step from there.

A residual that is not in the units of the state says nothing by its size. So every look compares the last step with the
unknowns' largest values so far, which costs nothing; and where that is short, or where a sample would give up, the
Newton step from the iterate decides (`ahead`). A claim that is refused is not repeated before the steps have become
shorter by as much as was missing, a thousandfold at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import norm
from torchimplicit.solve.ahead import Ahead, Outlook, look_ahead
from torchimplicit.solve.samples import FLOOR, PATIENCE_AT_FLOOR, SLACK, Samples

SOONEST, SPARSEST = 2.0, 1000.0  # by which factor steps must have become shorter before a claim is made again
GROWN = 10.0  # so many times its start an unknown is when it counts as running off,
PATIENCE_DOWNHILL = 30  # steps of a method that goes down by which neither energy nor slope has fallen
MOVING = 1e-3  # and so much of itself it moved by in the last step
FARTHER = 2.0  # so many times its start an unknown has run off where it has no influence any more


class Look(NamedTuple):
    """What a step has led to: the iterate, with its graph, and its residual, `(B, n)`; the rest is `(B,)`.

    The residual's norm, the largest move of an unknown as part of the largest value it has had, and whether this is the
    iterate to keep, has a smaller residual or a lower energy than any before, is finite, and may be a solution.
    """

    z: Tensor
    residual: Tensor
    size: Tensor
    move: Tensor
    better: Tensor
    smaller: Tensor
    sound: Tensor
    claims: Tensor


class Claims(Samples):
    """Judges iterates whose residuals are in other units than the state.

    Args:
        options: see `Samples`; `max_steps`, too.
        state: see `Samples`.
        eps: see `Samples`.
        save_steps: see `Samples`.
        settled: whether the start may be a solution already, and is looked at as one.
    """

    rows: ClassVar[tuple[str, ...]] = (
        *Samples.rows,
        *("largest", "highest", "peak", "start", "usual", "target", "lowest", "lower", "away"),
    )
    put_back: ClassVar[tuple[str, ...]] = (*Samples.put_back, "largest", "highest", "away")

    def __init__(self, options: Any, state: Any, eps: float, save_steps: Sequence[int] = (), settled: bool = False):
        super().__init__(options, state, eps, save_steps)
        self.tolerances = SLACK * options.rtol, SLACK * (options.atol or 0.0)
        self.last, self.settled = options.max_steps, settled
        self.start = self.usual = self.largest = self.highest = state.z.detach()
        self.lowest = self.lower = self.bar  # energy
        # Tensors, for operations with numbers cost twice as much.
        self.first_target, self.low = self.part.new_tensor(max(options.rtol, eps) ** 0.5), FLOOR * eps * self.part
        self.target = self.first_target.expand_as(self.best)
        self.away = torch.zeros_like(self.running)  # whether some unknown still grew at the last move

    def judge(self, step: int, state: Any, problem: Residual, stuck: Tensor | None = None) -> bool:
        """See `Samples.judge`."""
        if step in self.history:
            return self.any_running
        look = self._look(step, state)
        if bool((self.running & (look.claims | ~look.better | ~look.smaller)).any()):
            self._look_closer_at(step, problem, look, stuck)
        else:
            self.best = look.size if self.all_running else torch.where(self.running, look.size, self.best)
            self.latest, self.all_latest = self.running, self.all_running
            if self.any_stalled:
                self.stalled, self.any_stalled = torch.zeros_like(self.stalled), False
        # The least residual, not the last best one: at a minimum, rounding may lead round a circle of places.
        bar = torch.minimum(self.bar, self.best * self.part)
        self.bar = bar if self.all_running else torch.where(self.running, bar, -torch.inf)
        self.previous = look.z.clone() if self.overwritten else look.z
        if step in self.save_steps:
            self.saved[step] = look.z.clone() if self.all_running else self._current(look.z)
        return self.any_running

    def _look(self, step: int, state: Any) -> Look:
        """How an iterate compares with those before."""
        z, residual, energy = state.z.detach(), state.residual.detach(), getattr(state, "energy", None)
        size = self.history[step] = norm(residual)
        if step == 0:
            self.limit, self.highest, self.peak = self.divergence * size, residual.abs(), size
            self.largest = self.usual = self.moves = z.abs().clamp_min(torch.finfo(z.dtype).tiny)
            move = torch.full_like(size, torch.inf)
        else:
            self.largest = torch.maximum(self.largest, z.abs())
            self.highest, self.peak = torch.maximum(self.highest, residual.abs()), torch.maximum(self.peak, size)
            self.usual = self.largest if step == 1 else self.usual
            self.moves = (z - self.previous.detach()).abs() / self.largest
            move = self.moves.amax(1)
        self.target = torch.where(move > self.first_target, self.first_target, self.target)
        sound = (size + norm(z) if energy is None else size + norm(z) + energy).abs() < torch.inf
        low = self.peak * self.low
        claims = (move <= self.target) | ((size <= low) & (self.best > low))
        better = smaller = (size < self.bar) & sound
        if energy is not None:  # a method that goes down gets better by every step that it takes
            better = (move > 0) & sound
            smaller = smaller | ((energy < self.lower) & sound)
            self.lowest = torch.where(smaller, torch.minimum(energy, self.lowest), self.lowest)
            self.lower = torch.sub(self.lowest, self.lowest.abs(), alpha=FLOOR * self.eps)
            claims = claims & better
        if step >= self.last or (step == 0 and self.settled):
            claims = torch.ones_like(claims)
        return Look(state.z, residual, size, move, better, smaller, sound, claims & sound)

    def _look_closer_at(self, step: int, problem: Residual, look: Look, stuck: Tensor | None) -> None:
        failing = self.running & ~look.smaller
        status = torch.full_like(self.status, int(Status.MAX_STEPS))
        gives_up = torch.zeros_like(failing)
        fails = bool(failing.any())
        if fails:
            self.stalled, self.any_stalled = torch.where(failing, self.stalled + 1, 0), True
            lost = self.running & ~look.better & self.latest
            if bool(lost.any()):
                self._keep(lost, self.previous)
            gives_up = failing & self._is_stuck(look, stuck)
            status = torch.where(gives_up, int(Status.STAGNATED), status)
            status = torch.where(failing & (look.size > self.limit), int(Status.DIVERGED), status)
            status = torch.where(failing & ~look.sound, int(Status.NON_FINITE), status)
        elif self.any_stalled:
            self.stalled, self.any_stalled = torch.zeros_like(self.stalled), False
        arrived = torch.zeros_like(failing)
        asks = self.running & look.sound & (look.claims | gives_up)
        if bool(asks.any()):
            ahead = self._ask(problem, look, asks, fails and bool(gives_up.any()))
            arrived = asks & (ahead.excess <= 1)
            arrived = arrived if ahead.settled is None else arrived | (asks & gives_up & ahead.settled)
            status = torch.where(arrived, int(Status.CONVERGED), status)
            if ahead.finite is not None:
                status = torch.where(asks & ~ahead.finite, int(Status.NON_FINITE), status)
            shorter = look.move / ahead.excess.clamp(SOONEST, SPARSEST)
            self.target = torch.where(asks & (look.move > 0), shorter.clamp_min(FLOOR * self.eps), self.target)
        self.latest, self.all_latest = (look.better & self.running) | arrived, False
        self.best = torch.where(self.latest, look.size, self.best)
        stops = self.running & (status != int(Status.MAX_STEPS))
        if fails or step >= self.last:
            away = ((look.z.detach().abs() >= self.largest) & (self.moves > MOVING)).any(1)
            self.away = torch.where(self.running, (away & (look.move > 0)) | ~look.sound, self.away)
        if bool(stops.any()):
            self._stop(step, look.z, stops, status)

    def _is_stuck(self, look: Look, stuck: Tensor | None) -> Tensor:
        """Which samples will not get better."""
        if stuck is not None:  # the method knows: it may try steps that it does not take
            return (stuck & (look.move == 0)) | (self.stalled >= PATIENCE_DOWNHILL)
        return self.stalled >= torch.where(look.move <= FLOOR * self.eps, PATIENCE_AT_FLOOR, self.patience)

    def _ask(self, problem: Residual, look: Look, asks: Tensor, thorough: bool) -> Ahead:
        """The Newton step from here; none where an unknown has run to where it has no influence any more."""
        fallen = (look.residual.abs() <= self.eps * self.highest).all(1)
        z = look.z.detach()
        ahead = look_ahead(
            Outlook(problem, look.z, self.largest, self.highest, fallen, *self.tolerances), asks, thorough
        )
        if ahead.singular is None or ahead.blind is None or ahead.faint is None or ahead.settled is None:
            return ahead
        lost = ahead.blind & (z != self.start)
        underflown = ahead.faint & (look.residual == 0).all(1, keepdim=True)
        lost = lost | (underflown & (self.largest > FARTHER * self.start.abs()))
        lost = lost | (ahead.singular.unsqueeze(1) & (self.eps * self.largest > self.usual))
        lost = (lost & (z.abs() >= self.largest)).any(1)
        return ahead._replace(excess=torch.where(lost, torch.inf, ahead.excess), settled=ahead.settled & ~lost)

    def report(self, step: int, nfev: int, trace: bool) -> Report:
        """See `Samples.report`; says of samples that run off that they do."""
        report = super().report(step, nfev, trace)
        grown = (self.largest > GROWN * self.usual).any(1)
        falls = (self.best < norm(self.highest)) | (self.lowest < torch.finfo(self.lowest.dtype).max)
        away = (report.status != int(Status.CONVERGED)) & grown & self.away & falls
        if bool(away.any()):
            listed = ", ".join(map(str, torch.nonzero(away).flatten().tolist()[:5]))
            size = float(self.largest[away].max())
            report.advice = (
                f"The unknowns of sample {listed} still grow (up to {size:.1e}) while the residual or the energy "
                "falls: there may be no root or minimum but at infinity, as with exp(-z), or with separable data that "
                "nothing regularises; else try more max_steps, or a start nearby."
            )
        return report

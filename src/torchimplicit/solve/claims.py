"""When an iterate is a root or a minimum: claimed where steps become short, granted by the Newton step from there.

A residual that is not in the units of the state says nothing by its size. So every look compares the last step with the
unknowns' largest values so far, which costs nothing; and where that is short, or where a sample would give up, the
Newton step from the iterate decides (`ahead`). A claim that is refused is not repeated before the steps have become
shorter by as much as was missing, a thousandfold at most.

Claims may wait to be looked at together (`docket`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import norm
from torchimplicit.solve.ahead import Ahead, look_ahead
from torchimplicit.solve.docket import Docket
from torchimplicit.solve.look import Claim, Look
from torchimplicit.solve.runaway import Ran, advice, has_run_off
from torchimplicit.solve.samples import FLOOR, PATIENCE_AT_FLOOR, SLACK, Samples

SOONEST, SPARSEST = 2.0, 1000.0  # by which factor steps must have become shorter before a claim is made again
GROWN = 10.0  # so many times its start an unknown is when it counts as running off,
PATIENCE_DOWNHILL = 30  # steps of a method that goes down by which neither energy nor slope has fallen
MOVING = 1e-3  # and so much of itself it moved by in the last step

OWN = ("largest", "highest", "start", "usual", "target", "lowest", "below", "moves", "away")  # that have a row a sample


class Claims(Samples):
    """Judges iterates whose residuals are in other units than the state.

    Args:
        options: see `Samples`; `max_steps`, too.
        state: see `Samples`.
        eps: see `Samples`.
        save_steps: see `Samples`.
        settled: whether the start may be a solution already, and is looked at as one.
        ran: how far an earlier solve that ended there had run; None where there was none, or it had not failed.
    """

    rows: ClassVar[tuple[str, ...]] = (*Samples.rows, *OWN)
    put_back: ClassVar[tuple[str, ...]] = (*Samples.put_back, "largest", "highest", "away")

    def __init__(
        self,
        options: Any,
        state: Any,
        eps: float,
        save_steps: Sequence[int] = (),
        settled: bool = False,
        ran: Ran | None = None,
    ):
        super().__init__(options, state, eps, save_steps)
        self.earlier = ran if ran is not None and ran.start.shape == state.z.shape else None
        self.tolerances = SLACK * options.rtol, SLACK * (options.atol or 0.0)
        self.last, self.settled = options.max_steps, settled
        self.start = self.usual = self.largest = self.highest = state.z.detach()
        self.lowest = self.below = torch.full_like(self.best, torch.inf)  # energy, and what counts as lower
        self.first_target = max(options.rtol, eps) ** 0.5
        self.soon = max(options.rtol, FLOOR * eps)  # what the next step of a descent must be foreseen to be
        self.target, self.refused = torch.full_like(self.best, self.first_target), False
        self.moves = torch.zeros_like(self.start)  # of the last step that moved a sample
        self.away = torch.zeros_like(self.running)  # whether some unknown still grew by it
        # Nobody goes on in vain where rounding is all that there is to gain, or where steps are asked for.
        waits = options.rtol > eps**0.5 and not (self.overwritten or save_steps)
        self.docket = Docket(options.waits if waits else 0, self.away)

    def judge(self, step: int, state: Any, problem: Residual, stuck: Tensor | None = None) -> bool:
        """See `Samples.judge`."""
        if step in self.history:
            return self.any_running
        look = self._look(step, state)
        steady, docket = self._get_on(look), self.docket
        if docket.claims is not None and (step >= self.last or bool((docket.waiting & ~steady).any())):
            self._hear(problem)
        if self.refused:
            self.target = torch.where(look.move > self.first_target, self.first_target, self.target)
        may = self._foreseen(look)
        if step < self.last and (step or not self.settled) and self._goes_on(look, steady, may):
            self.best = look.size if self.all_running else torch.where(self.running, look.size, self.best)
            self.latest, self.all_latest = self.running, self.all_running
            if self.any_stalled:
                self.stalled, self.any_stalled = torch.zeros_like(self.stalled), False
            if look.energy is not None:
                self._lower(look.energy if self.all_running else torch.where(self.running, look.energy, self.lowest))
            self.moves = look.moves
            if docket.claims is not None:
                docket.follow(self._claim(step, look), may)
            self._hear_what_is_due(step, problem)
        else:
            self._look_closer_at(step, problem, look, may, stuck)
        # The least residual, not the last best one: at a minimum, rounding may lead round a circle of places.
        bar = torch.minimum(self.bar, self.best * self.part)
        self.bar = bar if self.all_running else torch.where(self.running, bar, -torch.inf)
        self.previous = look.z.clone() if self.overwritten else look.z
        if step in self.save_steps:
            self.saved[step] = look.z.clone() if self.all_running else self._current(look.z)
        return self.any_running

    def _look(self, step: int, state: Any) -> Look:
        """How an iterate compares with those before."""
        z, residual, previous = state.z, state.residual, self.previous
        if torch.is_grad_enabled():
            z, residual, previous = z.detach(), residual.detach(), previous.detach()
        size = self.history[step] = norm(residual)
        if step == 0:
            self.limit, self.highest = self.divergence * size, residual.abs()
            self.largest = self.usual = z.abs().clamp_min(torch.finfo(z.dtype).tiny)
            if self.earlier is not None:
                now = self.start, self.usual, self.largest, self.highest
                self.start, self.usual, self.largest, self.highest = self.earlier.goes_on(*now)
            moves, move = self.moves, torch.full_like(size, torch.inf)
        else:
            self.largest = torch.maximum(self.largest, z.abs())
            self.highest = torch.maximum(self.highest, residual.abs())
            self.usual = self.largest if step == 1 and self.earlier is None else self.usual
            moves = (z - previous).abs() / self.largest
            move = moves.amax(1)
        low = FLOOR * self.eps * norm(self.highest)
        return Look(state.z, residual, size, getattr(state, "energy", None), moves, move, low)

    def ran(self) -> Ran | None:
        """How far the samples have run that failed; None where none has."""
        failed = self.status != int(Status.CONVERGED)
        return Ran(failed, self.start, self.usual, self.largest, self.highest) if bool(failed.any()) else None

    def _get_on(self, look: Look) -> Tensor:
        """Which samples get better; those whose claims wait must go on moving little, too."""
        energy = look.energy
        falls = look.size < self.bar if energy is None else (energy < self.below) & (energy > -torch.inf)
        falls = falls & (look.size > look.low)
        if self.docket.claims is None:
            return falls
        return falls & (~self.docket.waiting | (look.move <= self.first_target))

    def _foreseen(self, look: Look) -> Tensor:
        """Where the next step will be short: those of a descent that shrink go on shrinking as the last two did."""
        if look.energy is None:
            return self.docket.nobody
        return look.move.square() <= self.soon * self.moves.amax(1)

    def _goes_on(self, look: Look, steady: Tensor, may: Tensor) -> bool:
        """Whether there is nothing else to do: every running sample gets better, and moves far or has claimed."""
        far = look.move > self.target
        far = far if look.energy is None else far | ~may
        fine = steady & (far if self.docket.claims is None else far | self.docket.waiting)
        return bool((fine if self.all_running else fine | ~self.running).all())

    def _lower(self, lowest: Tensor) -> None:
        self.lowest = lowest
        self.below = torch.sub(lowest, lowest.abs(), alpha=FLOOR * self.eps)

    def _compare(self, step: int, look: Look, may: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which iterates are to be kept, are better than any before, are finite, and may be solutions, `(B,)` each."""
        size, energy, move = look.size, look.energy, look.move
        sound = size + norm(look.z.detach())
        sound = (sound if energy is None else sound + energy).isfinite()
        claims = (move <= self.target) | ((size <= look.low) & (self.best > look.low)) | (size == 0)
        better = smaller = (size < self.bar) & sound
        if energy is not None:  # a method that goes down gets better by every step that it takes
            better = (move > 0) & sound
            smaller = smaller | ((energy < self.below) & sound)
            self._lower(torch.where(smaller, torch.minimum(energy, self.lowest), self.lowest))
            claims = claims & (better & may | (size == 0))
        if step >= self.last or (step == 0 and self.settled):
            claims = torch.ones_like(claims)
        return better, smaller, sound, claims & sound

    def _look_closer_at(self, step: int, problem: Residual, look: Look, may: Tensor, stuck: Tensor | None) -> None:
        better, smaller, sound, asks = self._compare(step, look, may)
        self.moves = torch.where((look.move > 0).unsqueeze(1), look.moves, self.moves)
        failing = self.running & ~smaller
        fails, gives_up = bool(failing.any()), torch.zeros_like(failing)
        status = torch.full_like(self.status, int(Status.MAX_STEPS))
        if fails:
            self.stalled, self.any_stalled = torch.where(failing, self.stalled + 1, 0), True
            lost = self.running & ~better & self.latest
            if bool(lost.any()):
                self._keep(lost, self.previous)
            gives_up = failing & self._is_stuck(look, stuck)
            status = Status.STAGNATED.where(gives_up, status)
            status = Status.DIVERGED.where(failing & (look.size > self.limit), status)
            status = Status.NON_FINITE.where(failing & ~sound, status)
        elif self.any_stalled:
            self.stalled, self.any_stalled = torch.zeros_like(self.stalled), False
        if fails or step >= self.last:
            away = (~(look.z.detach().abs() < self.largest) & (self.moves > MOVING)).any(1)
            self.away = torch.where(self.running, away, self.away)
        self.latest, self.all_latest = better & self.running, False
        self.best = torch.where(self.latest, look.size, self.best)
        asks = self.running & ((asks & ~self.docket.waiting) | (gives_up & sound))
        claim = self._claim(step, look)
        self.docket.follow(claim, may)
        if bool(asks.any()):
            self.docket.add(claim, step, asks)
        self._hear_what_is_due(step, problem, gives_up if fails and bool(gives_up.any()) else None)
        stops = self.running & (status != int(Status.MAX_STEPS))
        self._stop(step, look.z, stops, int(stops.sum()), status)

    def _claim(self, step: int, look: Look) -> Claim:
        at = torch.full_like(self.status, step)
        return Claim(at, look.z, look.residual, look.size, look.move, self.largest, self.highest)

    def _hear_what_is_due(self, step: int, problem: Residual, gives_up: Tensor | None = None) -> None:
        docket = self.docket
        if docket.claims is None:
            return
        if step >= self.last or gives_up is not None or docket.is_due(step, self.running):
            self._hear(problem, gives_up)

    def _hear(self, problem: Residual, gives_up: Tensor | None = None) -> None:
        """Looks at what has been claimed: grants it, or refuses it for now.

        Args:
            problem: the residual.
            gives_up: samples that will not get better, which rounding excuses, `(B,)` bool.
        """
        claims, asks = self.docket.claims, self.docket.waiting
        assert claims is not None
        while True:
            stops = self._decide(problem, claims, asks, gives_up)
            if not self.docket.trail:
                break
            claims, asks = self.docket.again(claims, asks & ~stops, self.target)
            if not bool(asks.any()):
                break
        self.docket.clear()

    def _decide(self, problem: Residual, claim: Claim, asks: Tensor, gives_up: Tensor | None) -> Tensor:
        """Stops samples whose claims are right, or whose energies are no numbers; returns which."""
        ahead = self._ask(problem, claim, gives_up is not None)
        excused = self.docket.nobody if gives_up is None else gives_up & ahead.settled
        arrived = asks & ((ahead.excess <= 1) | excused)
        self._note(ahead.jacobian, arrived)
        shorter = claim.move / ahead.excess.clamp(SOONEST, SPARSEST)
        shorter = shorter.clamp_min(FLOOR * self.eps)
        self.target, self.refused = torch.where(asks & (claim.move > 0), shorter, self.target), True
        status = Status.CONVERGED.where(arrived, Status.MAX_STEPS)
        status = Status.NON_FINITE.where(asks & ~ahead.finite, status)
        stops = self.running & (status != int(Status.MAX_STEPS))  # a claim may have waited until its sample failed
        if stopping := int(stops.sum()):
            self.latest = self.latest | (arrived & self.running)
            self.best = torch.where(stops & self.latest, claim.size, self.best)
            self._stop(claim.step, claim.z, stops, stopping, status)
        return stops

    def _is_stuck(self, look: Look, stuck: Tensor | None) -> Tensor:
        """Which samples will not get better."""
        if stuck is not None:  # the method knows: it may try steps that it does not take
            return (stuck & (look.move == 0)) | (self.stalled >= PATIENCE_DOWNHILL)
        return self.stalled >= torch.where(look.move <= FLOOR * self.eps, PATIENCE_AT_FLOOR, self.patience)

    def _ask(self, problem: Residual, claim: Claim, noisy: bool) -> Ahead:
        """The Newton step from there; none where an unknown has run to where it has no influence any more."""
        ahead = look_ahead(problem, claim, *self.tolerances, noisy)
        lost = has_run_off(claim, ahead, self.start, self.usual, self.tolerances[0], self.eps)
        return ahead._replace(excess=torch.where(lost, torch.inf, ahead.excess), settled=ahead.settled & ~lost)

    def _note(self, jacobian: Tensor | None, arrived: Tensor) -> None:
        """Keeps the Jacobians of samples that have arrived."""
        if jacobian is not None:
            others = 0.0 if self.jacobian is None else self.jacobian
            self.jacobian = torch.where(arrived[:, None, None], jacobian, others)

    def take(self, rows: Tensor) -> Claims:
        """See `Samples.take`."""
        some = super().take(rows)
        assert isinstance(some, Claims)
        some.jacobian, some.docket = None, self.docket.take(rows)
        return some

    def put(self, rows: Tensor, some: Samples, answer: Tensor) -> None:
        """See `Samples.put`."""
        super().put(rows, some, answer)
        if some.jacobian is not None:
            whole = some.jacobian.new_zeros(len(self.best), *some.jacobian.shape[1:])
            whole = whole if self.jacobian is None else self.jacobian
            self.jacobian = whole.index_copy(0, rows, some.jacobian)

    def report(self, step: int, nfev: int, trace: bool) -> Report:
        """See `Samples.report`; says of samples that run off that they do."""
        report = super().report(step, nfev, trace)
        grown = (self.largest > GROWN * self.usual).any(1)
        falls = (self.best < norm(self.highest)) | self.lowest.isfinite()
        away = (report.status != int(Status.CONVERGED)) & grown & self.away & falls
        if bool(away.any()):
            report.advice = advice(away, self.largest)
        return report

"""What the loop knows of every sample: when it stops, with which status, at which iterate.

`Samples` judges fixed points, whose residual is in the units of the state; `Claims` judges roots and minima. Each look
costs one comparison of every sample's residual with its tolerance and its best residual so far, and one read by the
host. Only when some sample stops or gets worse is more done, and iterates set aside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import norm, scaled_norm
from torchimplicit.solve.report import SolveReport

PATIENCE = 20  # looks without a better residual before a sample counts as stagnated, unless the solver has another,
PATIENCE_AT_FLOOR = 3  # or this few, when its residual is within FLOOR roundings of the state's size
FLOOR = 10.0
SLACK = 1 + 1e-6  # relative play in comparing a residual with the tolerance and with the best one
DIVERGENCE = 1e6  # growth of the residual over its first value that counts as divergence, unless the solver has another
SMALL = 2**14  # numbers in a state up to which going on with fewer samples saves no time


class Samples:
    """Judges iterates, sample by sample: `best` residual norms, `kept` iterates that were put aside.

    `bar` is what a residual must get below to count as better: a little under the best one, so that rounding is no
    progress. Once a sample has stopped, its bar is infinite and its tolerance minus infinity: it always gets better and
    never arrives, and so no look needs to know that it has stopped.

    Args:
        options: tolerances, stride of looks, patience: `rtol`, `atol`, `check_every`, `patience`, `divergence`.
        state: the solver's state at the start.
        eps: rounding of the function's dtype.
        save_steps: steps whose iterates to keep in `saved`.

    Attributes:
        rows: names of what there is of every sample, to be taken along when the batch is narrowed.
    """

    rows: ClassVar[tuple[str, ...]] = (
        *("atol", "bar", "lift", "best", "limit", "status", "steps", "stalled", "running", "latest", "previous"),
    )
    put_back: ClassVar[tuple[str, ...]] = ("best", "status", "steps", "running")

    def __init__(self, options: Any, state: Any, eps: float, save_steps: Sequence[int] = ()):
        z = state.z
        batch, width = z.shape
        self.size, self.eps = math.sqrt(width), eps
        self.patience, self.divergence = options.patience, options.divergence
        self.rtol = SLACK * options.rtol
        # The tiny addition lets a residual of exactly zero arrive at a tolerance of zero.
        self.absolute = SLACK * options.absolute * self.size + torch.finfo(z.dtype).tiny
        self.atol = z.new_full((batch,), self.absolute)
        self.best = self.limit = z.new_full((batch,), math.inf)
        self.part = z.new_full((), 1 / SLACK)  # a tensor: products with numbers cost twice as much
        self.bar = torch.full_like(self.best, torch.finfo(z.dtype).max)  # infinity is no start
        self.lift = torch.zeros_like(self.best)  # added to bars: infinity once a sample has stopped
        # Of samples that have stopped: those of the others are said in the end. Stalled: looks since the best residual.
        self.status = self.steps = self.stalled = torch.zeros(batch, dtype=torch.int64, device=z.device)
        info = torch.finfo(z.dtype)
        self.squares = (info.tiny / info.eps) ** 0.5, info.max  # sizes whose square keeps its digits
        self.minute = options.absolute * self.size < self.squares[0]  # tolerances may be none of them
        self.running = torch.ones_like(self.status, dtype=torch.bool)
        self.latest = self.running  # the latest iterate is the sample's best and not yet put aside; all: of who runs
        self.all_running, self.any_running, self.all_latest, self.any_stalled = True, True, True, False
        self.eventful = False  # whether there was something to do at the last look: often there is at the next one
        self.count = batch  # of those that run
        self.doubts = False  # whether some sample may have failed, as far as the host knows
        self.apart = False  # whether some went on after others had stopped
        self.beside: Tensor | None = None  # the last residual of all, where those that have stopped are held
        self.seen = self.best, self.best  # norms of everybody's residual and iterate at the last look
        self.few = False  # so few run that going on without the others pays
        self.kept: Tensor | None = None
        self.jacobian: Tensor | None = None  # where samples have converged, if it took that to see it
        self.previous = z
        self.overwritten = options.check_every > 1  # by the time of the next look
        self.save_steps, self.saved = save_steps, {}
        self.history: dict[int, Tensor] = {}

    def judge(self, step: int, state: Any, problem: Residual, stuck: Tensor | None = None) -> bool:
        """Looks at the iterate of a step; returns whether any sample still runs.

        Args:
            step: its number.
            state: the solver's state: the iterate `z` and its `residual`, `(B, n)` each.
            problem: the residual's function.
            stuck: samples that count as stagnated as soon as they do not improve, `(B,)` bool.
        """
        if step in self.history:  # seen before the batch was narrowed
            return self.any_running
        z, residual = state.z, state.residual
        if torch.is_grad_enabled():  # judging leaves no trace in a graph
            size, scale = norm(residual.detach()), norm(z.detach())
            if not self.all_running:  # those that have stopped are held, where their residual is zero
                size = torch.where(self.running, size, self.best)
        else:
            size, scale = norm(residual), norm(z)
        self.history[step] = size
        tolerance = torch.add(self.atol, scale, alpha=self.rtol)
        self.seen = size, scale
        if step == 0:
            self.limit = self.divergence * torch.maximum(size, tolerance)
        # The one read by the host: nothing to do while every running sample improves and none has arrived.
        if not self.eventful and torch.equal(size.clamp(tolerance, self.bar), size):
            self._note(size)
        else:
            self._look_closer(step, state, size, tolerance, scale, stuck)
        if self.any_running:
            self.bar = self.best * self.part if self.all_running else torch.addcmul(self.lift, self.best, self.part)
        self.previous = z.clone() if self.overwritten else z
        if step in self.save_steps:
            self.saved[step] = z.clone() if self.all_running else self._current(z)
        return self.any_running

    def _note(self, size: Tensor) -> None:
        """Every running sample has a better residual."""
        self.best = size if self.all_running else torch.where(self.running, size, self.best)
        if not self.all_latest:
            self.latest, self.all_latest = self.running, True
        if self.any_stalled:
            self.stalled, self.any_stalled = torch.zeros_like(self.stalled), False

    def _look_closer(
        self, step: int, state: Any, size: Tensor, tolerance: Tensor, scale: Tensor, stuck: Tensor | None,
        exact: bool = False,
    ) -> None:  # fmt: skip
        fails = not torch.equal(size.clamp_max(self.bar), size)
        # An iterate that grows loosens its own relative tolerance, in the end to infinity.
        arrived = (size <= tolerance) & (tolerance < math.inf)
        stopping = int(arrived.sum())
        # Some square may be none of this dtype's numbers: too large, or so small that it seems to have arrived.
        doubtful = not exact and (fails or (self.minute and stopping > 0))
        if doubtful and not torch.equal(size.clamp(*self.squares), size):
            self._look_closer(step, state, *self._measured_again(step, state, size, scale), stuck, exact=True)
            return
        self.eventful = fails or stopping > 0
        if fails:
            self._look_at_failures(step, state, size, scale, arrived, stuck)
            return
        self._note(size)
        if stopping:
            self._stop(step, state.z, arrived, stopping)

    def _look_at_failures(
        self, step: int, state: Any, size: Tensor, scale: Tensor, arrived: Tensor, stuck: Tensor | None
    ) -> None:
        """The same where some sample does not improve, one that has stopped perhaps."""
        improves = (size <= self.bar) & self.running
        failing = self.running & ~improves
        self.stalled, self.any_stalled = torch.where(failing, self.stalled + 1, 0), True
        lost = failing & self.latest
        if bool(lost.any()):  # a best iterate about to be overwritten: it is the previous one, still at hand
            self._keep(lost, self.previous)
        self.latest, self.all_latest = improves, False
        self.best = torch.where(improves, size, self.best)
        failure = self._failure(size, scale, stuck)
        stops = torch.where(failing, failure != Status.MAX_STEPS, improves & arrived)  # only a best iterate arrives
        self._stop(step, state.z, stops, int(stops.sum()), torch.where(failing, failure, int(Status.CONVERGED)))

    def _measured_again(self, step: int, state: Any, size: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Norms of residual and iterate and the tolerance, where the squares of their entries are lost in the dtype."""
        lost = self.running & ((size < self.squares[0]) | (size == math.inf))
        size = torch.where(lost, scaled_norm(state.residual.detach()), size)
        scale = torch.where(lost, scaled_norm(state.z.detach()), scale)
        self.history[step] = size
        tolerance = torch.add(self.atol, scale, alpha=self.rtol)
        if step == 0:
            self.limit = self.divergence * torch.maximum(size, tolerance)
        return size, tolerance, scale

    def _stop(self, step: int | Tensor, z: Tensor, stops: Tensor, stopping: int, status: Tensor | None = None) -> None:
        """Running samples stop: at this iterate where it is their latest, at the one that was set aside otherwise.

        Args:
            step: when.
            z: the iterate, `(B, n)`.
            stops: which, `(B,)` bool.
            stopping: how many.
            status: of those, `(B,)`; None where all have converged.
        """
        if not stopping:
            return
        self._keep(stops if status is None else stops & self.latest, z)
        if status is not None:
            self.status, self.doubts = torch.where(stops, status, self.status), True
        if isinstance(step, Tensor):
            self.steps = torch.where(stops, step, self.steps)
        else:
            self.steps = self.steps.masked_fill(stops, step)
        self.running, self.all_running = self.running ^ stops, False
        self.latest = self.running if self.all_latest else self.latest & ~stops
        self.atol, self.lift = self.atol.masked_fill(stops, -math.inf), self.lift.masked_fill(stops, math.inf)
        self.count -= stopping
        self.apart = self.apart or self.count > 0
        self.any_running, self.few = self.count > 0, z.numel() >= SMALL and 2 * self.count <= len(z)

    def _failure(self, residual: Tensor, scale: Tensor, stuck: Tensor | None) -> Tensor:
        """Why samples that do not improve stop, if they do."""
        floor = FLOOR * self.eps * scale
        patience = torch.where(residual <= floor, PATIENCE_AT_FLOOR, self.patience)
        stalled = self.stalled >= patience
        stalled = stalled if stuck is None else stalled | stuck
        status = Status.STAGNATED.where(stalled, Status.MAX_STEPS)
        status = Status.DIVERGED.where(residual > self.limit, status)
        return Status.NON_FINITE.unless((residual + scale).isfinite(), status)

    def _keep(self, which: Tensor, z: Tensor) -> None:
        self.kept = z.clone() if self.kept is None else torch.where(which.unsqueeze(1), z, self.kept)

    def _current(self, z: Tensor) -> Tensor:
        """The latest iterate of the running samples, the answer of the others, `(B, n)`."""
        assert self.kept is not None
        return torch.where(self.running.unsqueeze(1), z, self.kept)

    def answer(self, z: Tensor) -> Tensor:
        """Every sample's converged or best iterate, `(B, n)`."""
        if self.kept is None:
            return z.clone() if z._is_view() else z  # not a view that keeps a solver's whole history alive
        return torch.where(self.latest.unsqueeze(1), z, self.kept) if self.any_running else self.kept

    def settle(self) -> None:
        """The loop has ended: who still runs has used the steps up."""
        if self.any_running:
            self.status = Status.MAX_STEPS.where(self.running, self.status)

    def take(self, rows: Tensor) -> Samples:
        """The running samples alone."""
        some = copy.copy(self)
        for name in self.rows:
            setattr(some, name, getattr(self, name)[rows])
        some.kept = None if self.kept is None else self.kept[rows]
        some.all_running, some.few, some.count = True, False, len(rows)
        some.all_latest = bool(some.latest.all())
        some.saved, some.history = {}, {step: size[rows] for step, size in list(self.history.items())[-1:]}
        return some

    def put(self, rows: Tensor, some: Samples, answer: Tensor) -> None:
        """Puts back what `take` gave, once it has ended at these answers."""
        assert self.kept is not None
        for step, z in some.saved.items():
            self.saved[step] = self.kept.index_copy(0, rows, z)
        self.kept = self.kept.index_copy(0, rows, answer)
        for name in self.put_back:
            setattr(self, name, getattr(self, name).index_copy(0, rows, getattr(some, name)))
        self.latest, self.all_latest = torch.zeros_like(self.running), False
        self.any_running, self.count = some.any_running, some.count
        self.doubts = self.doubts or some.doubts
        absent = torch.full_like(self.best, math.nan)
        for step, size in some.history.items():
            if step not in self.history:
                self.history[step] = absent.index_copy(0, rows, size)

    def ran(self) -> Any:
        """What whoever goes on from failed samples must know of them; of fixed points, nothing."""
        return None

    def report(self, step: int, nfev: int, trace: bool) -> Report:
        """The report, once the loop has ended."""
        steps = torch.where(self.running, step, self.steps) if self.any_running else self.steps
        rows = None
        if trace:
            absent = torch.full_like(self.best, math.nan)
            rows = torch.stack([self.history.get(k, absent) for k in range(step + 1)]) / self.size
            passed = torch.arange(step + 1, device=steps.device).unsqueeze(1) > steps
            rows = rows.masked_fill(passed, math.nan)
        return SolveReport(self.status, steps, self.best / self.size, nfev, trace=rows)

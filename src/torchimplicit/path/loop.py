"""The one loop over steps: every sample with its own step size, time, end and status.

A step costs one read by the host: whether every sample accepts its step and none has come past an output time. Only
when that is not so is more done.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.path.events.watch import Watch
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.observer import Observer
from torchimplicit.path.record import Outputs, Phase, Step
from torchimplicit.path.solver import AdaptiveSolver, FixedSolver, PathSolver
from torchimplicit.path.span import Span
from torchimplicit.path.state import Traveller
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import PID, Fixed, History, Tolerance

SMALL = 2**14  # numbers in a state up to which going on with fewer samples saves no time


class Walk:
    """One phase of a solve: the same samples, until all have stopped or few go on.

    Args:
        solver: the method and its tolerances.
        field: the vector field of these samples.
        who: where they stand; moved on.
        values: the outputs, `(T, B, n)`, of the whole batch; written to.
        phase: the record; None keeps none.
        limit: steps, rejected ones included, that may still be made.
        narrow: whether to stop once few samples go on.
        rows: which samples of the whole batch they are; None for all.
        watch: looks out for events; None for none.
        observer: is told of every step; None for nobody.
        largest: the largest step of every sample, `(B,)`; None for any.
    """

    def __init__(
        self,
        solver: PathSolver,
        field: Field,
        who: Traveller,
        values: Tensor,
        phase: Phase | None,
        limit: int,
        narrow: bool = False,
        rows: Tensor | None = None,
        watch: Watch | None = None,
        observer: Observer | None = None,
        largest: Tensor | None = None,
    ):
        self.watch, self.observer, self.largest = watch, observer, largest
        self.solver, self.field, self.who, self.values, self.phase, self.rows = solver, field, who, values, phase, rows
        self.limit, self.narrow, self.attempts, self.few = limit, narrow, 0, False
        self.step = solver.stepper(who.y, graph=False)
        self.end, self.eps = who.ts[-1], torch.finfo(who.t.dtype).eps
        self.lands = solver.lands
        self.control = self.dt = None
        if isinstance(solver, AdaptiveSolver) and isinstance(solver.control, PID):
            self.control, self.tolerance = solver.control, Tolerance(solver.rtol, solver.atol, who.y)
        elif isinstance(solver, AdaptiveSolver) and isinstance(solver.control, Fixed):
            self.dt = solver.control.dt
        elif isinstance(solver, FixedSolver):
            self.dt = solver.dt
        self.all_running, self.any_running = True, len(who.t) > 0
        self.quick = 0  # attempts that are not in `tried` yet
        self.outputs = torch.nn.functional.pad(who.ts.T, (0, 1), value=math.inf)  # a row per sample, and then none
        self._see_next()

    def begin(self) -> None:
        """The first slope and the first step size; a sample without a way to go, or without a slope, stops here."""
        self._begin()
        arrived = self.who.t >= self.end
        if bool(arrived.any()):
            self._stop(arrived, Status.CONVERGED)

    def _begin(self) -> None:
        who, field = self.who, self.solver.rate(self.field)
        if self.watch is not None or self.control is not None:
            who.slope = field(who.t, who.y)
        if self.control is not None and who.slope is not None:
            who.h = self._first_step(field, who.slope)
        if self.watch is not None and who.slope is not None:
            self.watch.begin(who, who.slope, self._stop_time())
        if self.control is None:
            still = (self._free_stop() <= who.t) & (who.t < self.end)
            if bool(still.any()):
                self._stop(still, Status.STEP_TOO_SMALL)
        elif who.slope is not None and not math.isfinite(float(who.slope.sum())):
            self._stop(~who.slope.isfinite().all(1), Status.NON_FINITE)

    def _first_step(self, field: Field, slope: Tensor) -> Tensor:
        """The first step size of every sample, `(B,)`."""
        who, solver = self.who, self.solver
        assert isinstance(solver, AdaptiveSolver)
        if solver.dt0 is None:
            first = self.tolerance.first_step(field, who.t, who.y, slope, self.end, solver.order)
        else:
            first = torch.full_like(who.t, solver.dt0)
        limit = self.end - who.t
        first = torch.maximum(first, self.eps**4 * limit)  # a field of 1e300 has no path worth following from zero
        who.least = (first * self.eps**2).clamp_min_(solver.dt_min)
        who.history = History.start(who.y[:, 0]) if self.control is not None and self.control.remembers else None
        return torch.minimum(torch.maximum(first, self._smallest()), limit)

    def run(self) -> int:
        """Walks; returns how many steps were tried."""
        while self.any_running and not (self.narrow and self.few):
            if self.attempts == self.limit:
                self._stop(self.who.running, Status.MAX_STEPS)
                break
            before = self.who.t
            self.attempt()
            if self.observer is not None:
                self.observer.see(self.who, before, self.rows)
        self._settle()
        return self.attempts

    def attempt(self) -> None:
        """Tries one step of all samples."""
        who = self.who
        self.attempts += 1
        self.quick += 1
        stop = self._stop_time()
        span = Span.of(who.t, stop)
        done = self.step(self.field, span, who.y, who.slope)
        ratio = self._ratio(done, span.h)
        quiet = (ratio <= 1) & (stop < self.ahead)
        if self.watch is not None:
            quiet &= ~self.watch.sees(who, stop, done.y)
        if bool(quiet.all()):
            self._go_on(done, stop, span.h, ratio)
        else:
            self._look_closer(done, stop, span.h, ratio)

    def _ratio(self, done: Stepped, h: Tensor) -> Tensor:
        """The error of a step over its tolerance, `(B,)`."""
        if self.control is None:
            ratio = torch.where(done.y.isfinite().all(1), 0.0, math.inf)
            if done.failed is None:
                return ratio
            assert done.error is not None
            unsolved = torch.where(done.error.isfinite().all(1), 2.0, math.inf)
            return torch.where(done.failed, unsolved, ratio)
        assert done.error is not None
        return self.tolerance.ratio(done.error, self.who.y, done.y)

    def _smallest(self) -> Tensor:
        """The smallest step that every sample may try where it is, `(B,)`."""
        return torch.add(self.who.least, self.who.t.abs(), alpha=4 * self.eps)

    def _stop_time(self) -> Tensor:
        """Where the next step ends, `(B,)`."""
        stop = self._free_stop()
        if self.lands:  # nor shall a rounding leave a sliver of a step before the output
            stop = torch.where(stop + 1e-6 * (stop - self.who.t) >= self.ahead, self.ahead, stop)
        return stop

    def _free_stop(self) -> Tensor:
        """Where the next step would end if outputs lay within steps, `(B,)`."""
        who, dt = self.who, self.dt
        if self.control is not None:
            if self.largest is not None:
                who.h = torch.minimum(who.h, self.largest)
            return torch.minimum(who.t + who.h, self.end)
        if dt is None:
            return torch.where(who.running, self.ahead, who.t)
        # A sum of many steps must not miss the end by a rounding and leave a sliver of a step.
        stop = who.t + dt
        stop = torch.where(stop >= self.end - 1e-6 * dt, self.end, stop)
        return stop if self.all_running else torch.where(who.running, stop, who.t)

    def _go_on(self, done: Stepped, stop: Tensor, h: Tensor, ratio: Tensor) -> None:
        """All samples accept, and none comes past an output time."""
        who = self.who
        if self.phase is not None:
            self.phase.add(Step(who.t, stop, self.all_running), who.y)
        if self.watch is not None:
            self.watch.passes(who, who.running)
        who.t, who.y, who.slope = stop, done.y, done.slope
        if self.control is not None:
            # As planned: of size zero, should `t + h` be `t` by rounding, a step would stay so for ever.
            who.h = who.h * self.control.factor(ratio, who.history, self.solver.order)
            if who.history is not None:
                who.history = who.history.then(ratio, who.running)

    def _look_closer(self, done: Stepped, stop: Tensor, h: Tensor, ratio: Tensor) -> None:
        """Some sample rejects, comes past an output time, or stands still."""
        who = self.who
        ratio = torch.nan_to_num(ratio, nan=math.inf, posinf=math.inf)
        accept = ratio <= 1 if self.all_running else (ratio <= 1) & who.running
        reject = who.running & ~accept
        crossing = accept & (stop >= self.ahead)
        if self.control is None:
            stuck = reject
        else:
            factor, planned = self.control.factor(ratio, who.history, self.solver.order), who.h
            who.h = torch.where(stop < self.ahead, planned, h) * (
                torch.where(reject, factor.clamp_max(1.0), factor) if who.history is not None else factor
            )
            if self.lands:  # a step that was cut short says little of the next one
                who.h = torch.where(crossing, torch.maximum(who.h, planned), who.h)
            stuck = reject & (who.h < self._smallest())
        arriving = crossing & (stop >= self.end)
        facts = torch.stack((accept, reject, crossing, stuck, arriving))
        moves, rejects, crosses, sticks, arrives = facts.any(1).tolist()
        if moves:
            self._move(done, stop, h, accept, rejects or not self.all_running, crosses)
        if who.history is not None:
            who.history = who.history.then(ratio, accept)
        if rejects:
            who.rejected = who.rejected + reject
        if crosses:
            who.ratio = torch.where(crossing, ratio, who.ratio)
        if arrives:
            self._stop(arriving, Status.CONVERGED)
        if sticks:
            who.ratio = torch.where(stuck, ratio, who.ratio)
            finite = ratio.isfinite()
            self._stop(stuck & finite, Status.STEP_TOO_SMALL)
            self._stop(stuck & ~finite, Status.NON_FINITE)

    def _move(self, done: Stepped, stop: Tensor, h: Tensor, accept: Tensor, some_stay: bool, crosses: bool) -> None:
        """Moves the samples that accept their step."""
        who, y, slope, span = self.who, done.y, done.slope, Span(self.who.t, stop, h)
        if some_stay:
            moved = accept.unsqueeze(1)
            stop = torch.where(accept, stop, who.t)
            y = torch.where(moved, y, who.y)
            slope = slope if slope is None or who.slope is None else torch.where(moved, slope, who.slope)
        halt = None if self.watch is None else self.watch.halt(who, accept, span, done.inside)
        until = stop if halt is None else torch.where(halt.fires, halt.t, stop)
        outputs = self._outputs(until, done, h) if crosses else None
        if self.phase is not None:
            self.phase.add(Step(who.t, stop, not some_stay, outputs), who.y)
        if self.watch is not None:
            self.watch.passes(who, accept)
        who.t, who.y, who.slope = until, y, slope
        if halt is not None:
            who.y = torch.where(halt.fires.unsqueeze(1), halt.y, y)
            self._stop(halt.fires, Status.CONVERGED)

    def _outputs(self, stop: Tensor, done: Stepped, h: Tensor) -> Outputs:
        """Writes the outputs within this step; says which they are."""
        who = self.who
        outputs = self._passed(stop)
        samples, places = outputs.samples, outputs.places
        part = (who.ts[places, samples] - who.t[samples]) / h[samples]
        whole = samples if self.rows is None else self.rows[samples]
        self.values[places, whole] = done.inside.at(part, samples)
        return outputs

    def _passed(self, stop: Tensor) -> Outputs:
        """The outputs up to these times, `(B,)`, that were ahead."""
        who = self.who
        passed = torch.searchsorted(self.outputs, stop.unsqueeze(1), right=True).squeeze(1)
        passed = torch.where(stop > who.t, passed, who.next)
        counts = passed - who.next
        samples = torch.repeat_interleave(counts)
        offset = torch.cumsum(counts, 0) - counts
        places = torch.arange(len(samples), device=stop.device) - offset[samples] + who.next[samples]
        who.next = passed
        self._see_next()
        return Outputs(samples, places)

    def _see_next(self) -> None:
        """The next output time of every sample, `(B,)`; infinity once it has none."""
        self.ahead = self.outputs.gather(1, self.who.next.unsqueeze(1)).squeeze(1)

    def _stop(self, which: Tensor, status: Status) -> None:
        who = self.who
        self._settle()
        who.status = torch.where(which & who.running, int(status), who.status)
        who.running = who.running & ~which
        who.h = torch.where(who.running, who.h, 0.0)
        self.ahead = torch.where(who.running, self.ahead, math.inf)
        self.end = torch.where(who.running, self.end, who.t)
        running = int(who.running.sum())
        self.all_running, self.any_running = running == len(who.t), running > 0
        self.few = who.y.numel() >= SMALL and 2 * running <= len(who.t)

    def _settle(self) -> None:
        """Counts the attempts of those that made them."""
        self.who.tried = self.who.tried + self.quick * self.who.running
        self.quick = 0

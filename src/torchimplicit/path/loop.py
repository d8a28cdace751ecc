"""The one loop over steps: every sample with its own step size, time, end and status.

A step costs one read by the host: whether every sample accepts its step and none has come past an output time. Only
when that is not so is more done.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.path.events.watch import Watch
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.graphs import Graphs
from torchimplicit.path.observer import Observer
from torchimplicit.path.passing import pass_outputs
from torchimplicit.path.record import Outputs, Phase, Step
from torchimplicit.path.solver import AdaptiveSolver, PathSolver
from torchimplicit.path.span import Span
from torchimplicit.path.state import IntegratorState
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import PID, History, Tolerance


class StepLoop:
    """One phase of a solve: the same samples, until all have stopped or few go on.

    Args:
        solver: the method and its tolerances.
        field: the vector field of these samples.
        state: where they stand; moved on.
        values: the outputs, `(T, B, n)`, of the whole batch; written to.
        phase: the record; None keeps none.
        limit: steps, rejected ones included, that may still be made.
        narrow: whether to stop once few samples go on.
        rows: which samples of the whole batch they are; None for all.
        watch: looks out for events; None for none.
        observer: is told of every step; None for nobody.
        largest: the largest step of every sample, `(B,)`; None for any.
        graphs: keeps those of steps; None for no gradient, or steps that are made again for it.
    """

    def __init__(
        self, solver: PathSolver, field: Field, state: IntegratorState, values: Tensor, phase: Phase | None, limit: int,
        narrow: bool = False, rows: Tensor | None = None, watch: Watch | None = None, observer: Observer | None = None,
        largest: Tensor | None = None, graphs: Graphs | None = None,
    ):  # fmt: skip
        self.watch, self.observer, self.largest = watch, observer, largest
        self.solver, self.field, self.state, self.values = solver, field, state, values
        self.phase, self.rows = phase, rows
        self.limit, self.narrow, self.attempts, self.mostly_done = limit, narrow, 0, False
        keeper = None if graphs is None else solver.keeper(state.y, graphs)
        self.graphs, self.step = graphs if keeper else None, keeper or solver.stepper(state.y, graph=False)
        self.end, self.eps = state.ts[-1], torch.finfo(state.t.dtype).eps
        self.stops_at_outputs = solver.stops_at_outputs
        self.control = self.dt = None
        if solver.adapts:
            assert isinstance(solver, AdaptiveSolver)
            assert isinstance(solver.control, PID)
            self.control, self.tolerance = solver.control, Tolerance(solver.rtol, solver.atol, state.y)
        else:
            self.dt = solver.dt_given
        self.all_running, self.any_running = state.all_running, len(state.t) > 0
        self.uncounted = 0  # attempts that are not in `tried` yet: all running samples made them, one sum adds them
        self.outputs = torch.nn.functional.pad(state.ts.T, (0, 1), value=math.inf)  # a row per sample, and then none
        self._see_next()

    def begin(self) -> None:
        """The first slope and the first step size; a sample without a way to go, or without a slope, stops here."""
        self._begin()
        arrived = self.state.t >= self.end
        if bool(arrived.any()):
            self._stop(arrived, Status.CONVERGED)

    def _begin(self) -> None:
        state, field = self.state, self.solver.state_field(self.field)
        if self.watch is not None or self.control is not None:
            ask = field if self.graphs is None else partial(self.graphs.ask, field)
            state.slope = ask(state.t, state.y)
        if self.control is not None and state.slope is not None:
            state.h = self._first_step(field, state.slope)
        if self.watch is not None and state.slope is not None:
            self.watch.begin(state, state.slope, self._stop_time())
        if self.control is None:
            still = (self._free_stop() <= state.t) & (state.t < self.end)
            if bool(still.any()):
                self._stop(still, Status.STEP_TOO_SMALL)
        elif state.slope is not None and not math.isfinite(float(state.slope.sum())):
            self._stop(~state.slope.isfinite().all(1), Status.NON_FINITE)

    def _first_step(self, field: Field, slope: Tensor) -> Tensor:
        """The first step size of every sample, `(B,)`."""
        state, solver = self.state, self.solver
        assert isinstance(solver, AdaptiveSolver)
        if solver.dt0 is None:
            first = self.tolerance.first_step(field, state.t, state.y, slope, self.end, solver.order)
        else:
            first = torch.full_like(state.t, solver.dt0)
        limit = self.end - state.t
        first = torch.maximum(first, self.eps**4 * limit)  # a field of 1e300 has no path worth following from zero
        state.least = (first * self.eps**2).clamp_min_(solver.dt_min)
        state.history = History.start(state.y[:, 0]) if self.control is not None and self.control.remembers else None
        state.most = torch.full_like(state.t, math.inf)
        return torch.minimum(torch.maximum(first, self._smallest()), limit)

    def run(self) -> int:
        """Makes steps; returns how many steps were tried."""
        while self.any_running and not (self.narrow and self.mostly_done):
            if self.attempts == self.limit:
                self._stop(self.state.running, Status.MAX_STEPS)
                break
            before = self.state.t
            self.attempt()
            if self.observer is not None:
                self.observer.see(self.state, before, self.rows)
        self._settle()
        return self.attempts

    def attempt(self) -> None:
        """Tries one step of all samples."""
        state = self.state
        self.attempts += 1
        self.uncounted += 1
        stop = self._stop_time()
        span = Span.of(state.t, stop, state.number)
        done = self.step(self.field, span, state.y, state.slope)
        ratio = self._ratio(done, span.h)
        quiet = (ratio <= 1) & (stop < self.next_output)
        if self.watch is not None:
            quiet &= ~self.watch.sees(state, stop, done.y)
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
        return self.tolerance.ratio(done.error, self.state.y, done.y)

    def _smallest(self) -> Tensor:
        """The smallest step that every sample may try where it is, `(B,)`."""
        return torch.add(self.state.least, self.state.t.abs(), alpha=4 * self.eps)

    def _stop_time(self) -> Tensor:
        """Where the next step ends, `(B,)`."""
        stop = self._free_stop()
        if self.stops_at_outputs:  # nor shall a rounding leave a sliver of a step before the output
            stop = torch.where(stop + 1e-6 * (stop - self.state.t) >= self.next_output, self.next_output, stop)
        return stop

    def _free_stop(self) -> Tensor:
        """Where the next step would end if outputs lay within steps, `(B,)`."""
        state, dt = self.state, self.dt
        if self.control is not None:
            if self.largest is not None:
                state.h = torch.minimum(state.h, self.largest)
            return torch.minimum(state.t + state.h, self.end)
        if dt is None:
            return torch.where(state.running, self.next_output, state.t)
        # A sum of many steps must not miss the end by a rounding and leave a sliver of a step.
        stop = state.t + dt
        stop = torch.where(stop >= self.end - 1e-6 * dt, self.end, stop)
        return stop if self.all_running else torch.where(state.running, stop, state.t)

    def _go_on(self, done: Stepped, stop: Tensor, h: Tensor, ratio: Tensor) -> None:
        """All samples accept, and none comes past an output time."""
        state = self.state
        self._record(done, stop, self.all_running)
        if self.watch is not None:
            self.watch.passes(state, state.running)
        state.move(stop, done.y, done.slope)
        if self.control is not None:
            # As planned: of size zero, should `t + h` be `t` by rounding, a step would stay so for ever.
            factor = self.control.factor(ratio, state.history, self.solver.order)
            state.plan(state.h * factor, ratio, state.running)

    def _look_closer(self, done: Stepped, stop: Tensor, h: Tensor, ratio: Tensor) -> None:
        """Some sample rejects, comes past an output time, or stands still."""
        state = self.state
        # A step to what is not finite is rejected like any other, until it is as small as may be tried.
        ratio = torch.nan_to_num(ratio, nan=math.inf, posinf=math.inf)
        accept = ratio <= 1 if self.all_running else (ratio <= 1) & state.running
        reject = state.running & ~accept
        crossing = accept & (stop >= self.next_output)
        if self.control is None:
            stuck = reject
        else:
            factor, planned = self.control.factor(ratio, state.history, self.solver.order), state.h
            # From the step that was made, should an output or the end have cut it short. With a memory of errors the
            # factor may exceed 1 for a step that was rejected: the same step again would be rejected for ever.
            if state.history is not None:
                factor = torch.where(reject, factor.clamp_max(1.0), factor)
            wanted = torch.where(stop < self.next_output, planned, h) * factor
            if self.stops_at_outputs:  # a step that was cut short says little of the next one
                wanted = torch.where(crossing, torch.maximum(wanted, planned), wanted)
            state.plan(wanted, ratio, accept)
            stuck = reject & (state.h < self._smallest())
        arriving = crossing & (stop >= self.end)
        # One read by the host for all that it must know, not five: on a GPU each waits for the device.
        facts = torch.stack((accept, reject, crossing, stuck, arriving))
        moves, rejects, crosses, sticks, arrives = facts.any(1).tolist()
        if moves:
            done = done._replace(graph=None) if rejects else done  # of steps that are too long for some
            self._move(done, stop, h, accept, rejects or not self.all_running, crosses)
        if rejects:
            state.rejected = state.rejected + reject
        if crosses:
            state.ratio = torch.where(crossing, ratio, state.ratio)
        if arrives:
            self._stop(arriving, Status.CONVERGED)
        if sticks:
            state.ratio = torch.where(stuck, ratio, state.ratio)
            finite = ratio.isfinite()
            self._stop(stuck & finite, Status.STEP_TOO_SMALL)
            self._stop(stuck & ~finite, Status.NON_FINITE)

    def _record(self, done: Stepped, stop: Tensor, all_move: bool, outputs: Outputs | None = None) -> None:
        """Records a step that is taken; with its graph, as long as there is room for such."""
        if self.phase is None:
            return
        state, graph = self.state, None if self.graphs is None else self.graphs.admit(done.graph)
        if self.graphs is not None and self.graphs.full:
            self.graphs, self.step = None, self.solver.stepper(state.y, graph=False)
        self.phase.add(Step(state.t, stop, all_move, outputs, state.number, graph=graph), state.y)

    def _move(self, done: Stepped, stop: Tensor, h: Tensor, accept: Tensor, some_stay: bool, crosses: bool) -> None:
        """Moves the samples that accept their step."""
        state, y, slope, span = self.state, done.y, done.slope, Span(self.state.t, stop, h, self.state.number)
        if some_stay:
            moved = accept.unsqueeze(1)
            stop = torch.where(accept, stop, state.t)
            y = torch.where(moved, y, state.y)
            if slope is not None and state.slope is not None and done.graph is None:  # else who stays has arrived
                slope = torch.where(moved, slope, state.slope)
        ending = None if self.watch is None else self.watch.ending(state, accept, span, done.inside)
        # Outputs behind an event hold its state, as all do that a sample does not reach.
        until = stop if ending is None else torch.where(ending.fires, ending.t, stop)
        outputs = self._outputs(until, done, h) if crosses else None
        self._record(done, stop, not some_stay, outputs)
        if self.watch is not None:
            self.watch.passes(state, accept)
        state.move(until, y, slope)
        if ending is not None:
            state.y = torch.where(ending.fires.unsqueeze(1), ending.y, y)
            self._stop(ending.fires, Status.CONVERGED)

    def _outputs(self, stop: Tensor, done: Stepped, h: Tensor) -> Outputs:
        """Writes the outputs within this step; says which they are."""
        state = self.state
        outputs = pass_outputs(state, self.outputs, stop)
        self._see_next()
        samples, places = outputs.samples, outputs.places
        theta = (state.ts[places, samples] - state.t[samples]) / h[samples]
        whole = samples if self.rows is None else self.rows[samples]
        self.values[places, whole] = done.inside.at(theta, samples)
        return outputs

    def _see_next(self) -> None:
        """The next output time of every sample, `(B,)`; infinity once it has none."""
        self.next_output = self.outputs.gather(1, self.state.next.unsqueeze(1)).squeeze(1)

    def _stop(self, which: Tensor, status: Status) -> None:
        state = self.state
        self._settle()
        state.status = torch.where(which & state.running, int(status), state.status)
        state.running = state.running & ~which
        state.h = torch.where(state.running, state.h, 0.0)
        # They go on beside the others by steps of size zero that pass no output: cheaper than to gather those that run.
        self.next_output = torch.where(state.running, self.next_output, math.inf)
        self.end = torch.where(state.running, self.end, state.t)
        running = int(state.running.sum())
        self.all_running = state.all_running = running == len(state.t)
        self.any_running = running > 0
        self.mostly_done = 2 * running <= len(state.t)

    def _settle(self) -> None:
        """Counts the attempts of those that made them."""
        self.state.tried = self.state.tried + self.uncounted * self.state.running
        self.uncounted = 0

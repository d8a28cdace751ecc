"""The one loop over steps: every sample with its own step size, time, end and status.

A step costs one read by the host: whether every sample accepts its step and none has come past an output time. Only
when that is not so is more done.
"""

from __future__ import annotations

import math
from functools import cached_property, partial

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.path.events.watch import Watch
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.graphs import Graphs
from torchimplicit.path.observer import Observer
from torchimplicit.path.passing import pass_last, pass_outputs
from torchimplicit.path.record import Outputs, Phase, Step
from torchimplicit.path.solver import AdaptiveSolver, PathSolver
from torchimplicit.path.span import Span
from torchimplicit.path.state import IntegratorState
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import PID, Tolerance


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
        self.limit, self.narrow, self.attempts, self.mostly_done, self.graphs = limit, narrow, 0, False, graphs
        self.step = solver.stepper(state.y, graph=False) if graphs is None else solver.keeper(state.y, graphs)
        self.end, self.stops_at_outputs = state.ts[-1], solver.stops_at_outputs
        self.control, self.dt = None, solver.dt_given
        if solver.adapts and isinstance(solver, AdaptiveSolver) and isinstance(solver.control, PID):
            self.control, self.dt_min = solver.control, solver.dt_min
            self.tolerance = Tolerance(solver.rtol, solver.atol, state.y)
        self.all_running, self.any_running = state.all_running, len(state.t) > 0
        self.running = len(state.t) if self.all_running else int(state.running.sum())
        self.uncounted = 0  # attempts that are not in `tried` yet: all running samples made them, one sum adds them
        if state.number == 0 and len(state.ts) > 1:  # nobody has passed an output but the start
            self.next_output = state.ts[1]
        else:
            self._see_next()

    @cached_property
    def outputs(self) -> Tensor:
        """The output times, a row for each sample, and behind them infinity, `(B, T + 1)`."""
        return torch.nn.functional.pad(self.state.ts.T, (0, 1), value=math.inf)

    def begin(self) -> None:
        """The first slope and the first step size; a sample without a way to go, or without a slope, stops here."""
        state, field, way = self.state, self.solver.state_field(self.field), self.end - self.state.t
        if self.watch is not None or self.control is not None:
            ask = field if self.graphs is None else partial(self.graphs.ask, field)
            state.slope = ask(state.t, state.y)
        if self.control is not None and state.slope is not None:
            state.begin(self._first_step(field, state.slope, way), way, self.dt_min, self.control.remembers)
        if self.watch is not None and state.slope is not None:
            self.watch.begin(state, state.slope, self._stop_time())
        if not self.any_running:
            return
        if self.control is None:
            still = (self._free_stop() <= state.t) & (way > 0)
            if bool(still.any()):
                self._stop(still, Status.STEP_TOO_SMALL)
            least = float(way.amin())
        else:
            assert state.slope is not None
            least, total = torch.stack((way.amin(), state.slope.sum())).tolist()
            if not math.isfinite(total):
                self._stop(~state.slope.isfinite().all(1), Status.NON_FINITE)
        if least <= 0:
            self._stop(way <= 0, Status.CONVERGED)

    def _first_step(self, field: Field, slope: Tensor, way: Tensor) -> Tensor:
        """What the first step of every sample should be, `(B,)`, which has so far to go."""
        state, solver = self.state, self.solver
        assert isinstance(solver, AdaptiveSolver)
        state.most = torch.full_like(state.t, math.inf)
        if solver.dt0 is not None:
            return torch.full_like(state.t, solver.dt0)
        return self.tolerance.first_step(field, state.t, state.y, slope, self.end, solver.order, solver.alone)

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
        fits, early = ratio <= 1, stop < self.next_output
        quiet = fits & early
        if self.watch is not None:
            quiet &= ~self.watch.sees(state, stop, done.y)
        if bool(quiet.all()):
            self._go_on(done, stop, span.h, ratio)
        elif len(state.ts) == 2 and self.all_running and self.watch is None and bool((fits > early).all()):
            self._arrive(done, stop, span.h, ratio)
        else:
            self._look_closer(done, stop, span.h, ratio)

    def _ratio(self, done: Stepped, h: Tensor) -> Tensor:
        """The error of a step over its tolerance, `(B,)`."""
        if self.control is None:
            return done.fault
        assert done.error is not None
        return self.tolerance.ratio(done.error, self.state.y, done.y)

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
        accept = ratio <= 1 if self.all_running else (ratio <= 1) & state.running
        crossing = accept & (stop >= self.next_output)
        arriving = crossing & (stop >= self.end)
        # One read by the host for all that it must know, not five: on a GPU each waits for the device.
        moves, crosses, arrives = torch.stack((accept, crossing, arriving)).sum(1).tolist()
        rejects = moves < self.running
        if arrives == len(state.t) and self.watch is None:
            self._arrive(done, stop, h, ratio)
            return
        stuck = reject = state.running & ~accept if rejects else None
        if rejects:  # a step to what is not finite is rejected like any other, until it is as small as may be tried
            ratio = torch.nan_to_num(ratio, nan=math.inf, posinf=math.inf)
        if self.control is not None:
            factor, planned = self.control.factor(ratio, state.history, self.solver.order), state.h
            # From the step that was made, should an output or the end have cut it short. With a memory of errors the
            # factor may exceed 1 for a step that was rejected: the same step again would be rejected for ever.
            if state.history is not None and reject is not None:
                factor = torch.where(reject, factor.clamp_max(1.0), factor)
            wanted = torch.where(stop < self.next_output, planned, h) * factor
            if self.stops_at_outputs:  # a step that was cut short says little of the next one
                wanted = torch.where(crossing, torch.maximum(wanted, planned), wanted)
            state.plan(wanted, ratio, accept)
            stuck = None if reject is None else reject & (state.h < state.smallest())
        if moves:
            done = done.only(accept) if rejects else done
            self._move(done, stop, h, accept, rejects or not self.all_running, crosses > 0)
        if crosses:
            state.ratio = torch.where(crossing, ratio, state.ratio)
        if arrives:
            self._stop(arriving, Status.CONVERGED, arrives if self.watch is None else None)  # events stop some before
        if reject is not None and stuck is not None:
            state.rejected = state.rejected + reject
            if bool(stuck.any()):
                state.ratio = torch.where(stuck, ratio, state.ratio)
                self._stop(stuck & ratio.isfinite(), Status.STEP_TOO_SMALL)
                self._stop(stuck & ratio.isinf(), Status.NON_FINITE)

    def _arrive(self, done: Stepped, stop: Tensor, h: Tensor, ratio: Tensor) -> None:
        """All samples accept, and all come to the last time: most solves end so."""
        state = self.state
        state.arrived = True
        self._move(done, stop, h, state.running, False, True)
        self._settle()
        state.ratio, state.running, state.h = ratio, torch.zeros_like(state.running), torch.zeros_like(state.h)
        self.any_running = self.all_running = state.all_running = False

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
            if slope is not None and state.slope is not None and (done.graph is None or done.graph.mixed):
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
        if len(state.ts) == 2:
            outputs, self.next_output = pass_last(state, self.next_output, stop)
            found = done.y if outputs.everybody else done.y[outputs.samples]
        else:
            outputs = pass_outputs(state, self.outputs, stop)
            self._see_next()
            samples, places = outputs.samples, outputs.places
            theta = (state.ts[places, samples] - state.t[samples]) / h[samples]
            found = done.inside.at(theta, samples)
        self.values[outputs.places, outputs.samples if self.rows is None else self.rows[outputs.samples]] = found
        return outputs

    def _see_next(self) -> None:
        """Finds the next output time of every sample, `(B,)`; infinity once it has none."""
        self.next_output = self.outputs.gather(1, self.state.next.unsqueeze(1)).squeeze(1)

    def _stop(self, which: Tensor, status: Status, count: int | None = None) -> None:
        """Stops samples, `(B,)`, those that run among them, which are `count`."""
        state = self.state
        self._settle()
        which = which & state.running if count is None else which
        state.status = state.status.masked_fill(which, int(status))
        state.running = state.running > which
        state.h = state.h.masked_fill(which, 0.0)
        # They go on beside the others by steps of size zero that pass no output: cheaper than to gather those that run.
        self.next_output = self.next_output.masked_fill(which, math.inf)
        self.end = torch.where(which, state.t, self.end)
        self.running -= int(which.sum()) if count is None else count
        self.all_running = state.all_running = self.running == len(state.t)
        self.any_running = self.running > 0
        self.mostly_done = 2 * self.running <= len(state.t)

    def _settle(self) -> None:
        """Counts the attempts of those that made them."""
        if self.uncounted:
            made = self.uncounted if self.all_running else self.uncounted * self.state.running
            self.state.tried, self.uncounted = self.state.tried + made, 0

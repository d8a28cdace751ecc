"""One call along a path: what to integrate, how, and how it went. Adjoints turn it into a differentiable path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.call import Call, Record
from torchimplicit.core.independence import FEW, alternate, coupled, halves, not_samples, unmoved_by_others
from torchimplicit.core.status import Status
from torchimplicit.path.engine import Engine, Foreseen
from torchimplicit.path.events.event import Trigger
from torchimplicit.path.events.watch import Log, Met, Watch
from torchimplicit.path.field.between import Between, Within
from torchimplicit.path.field.dynamics import Dynamics, Field, MappedDynamics
from torchimplicit.path.graphs import Graphs
from torchimplicit.path.narrow import Narrowing
from torchimplicit.path.observer import Observer
from torchimplicit.path.passing import hold
from torchimplicit.path.record import Path, Phase
from torchimplicit.path.report import PathReport
from torchimplicit.path.solver import PathSolver
from torchimplicit.path.state import IntegratorState


@dataclass
class PathRecord(Record):
    """How the solves of one call went.

    Attributes:
        report: of the forward solve; there once that is done, as is `reached`.
        reached: the time that each sample reached, as solvers count it, `(B,)`.
        path: the solve as it can be made again; taken by whoever keeps it.
        event: which event ended the solve of each sample, -1 for none, `(B,)`; None without events.
        met: the crossings of every event.
        side: the signs of the events' conditions where each solve ended, `(B, E)`; None without events.
        lost: which samples have a path but no gradient, `(B,)`, for their steps are not found again; None where that is
            none, or was not looked at.
        stretch: which stretch between jumps the last backward solve was of.
        moved: whether some sample has made a step; None where only the report knows.
    """

    report: PathReport = field(init=False)
    reached: Tensor = field(init=False)
    path: Path | None = None
    event: Tensor | None = None
    met: Sequence[Met] = ()
    side: Tensor | None = None
    lost: Tensor | None = None
    stretch: int = 0
    moved: bool | None = None

    def lose(self, which: Tensor) -> None:
        """Notes samples, `(B,)`, that have a path but no gradient."""
        if bool(which.any()):
            self.lost = which if self.lost is None else self.lost | which

    def take_path(self) -> Path:
        """The path; can be taken once, so that its states are not kept alive here."""
        path, self.path = self.path, None
        assert path is not None
        return path


@dataclass(frozen=True)
class PathCall(Call):
    """Dynamics, and the solver to integrate them.

    Attributes:
        name: of the public function, for its report and for messages.
        dynamics: the vector field; mapped inside `torch.vmap`.
        solver: the method and its tolerances.
        audit: refuse captured tensors.
        checkpoints: how many states to keep on the way; 0 keeps none, and no path.
        trigger: the events' conditions; None for no event.
        engine: makes the steps.
        callback: the user's, told of every step of the forward solve; None for nobody.
        dt_max: the largest step of every sample, `(B,)`; None for any.
        between: whether the field may jump at the first and the last time, and is asked strictly between them.
        side: the signs of the events' conditions from which the solve comes over a jump, `(B, E)`; None for no jump.
        budget: bytes that graphs of steps may take which are kept for the backward pass.
    """

    name: str
    dynamics: Dynamics | MappedDynamics
    solver: PathSolver
    audit: bool
    checkpoints: int
    trigger: Trigger | None = None
    engine: Engine = Engine()
    callback: Callable | None = None
    dt_max: Tensor | None = None
    between: bool = False
    side: Tensor | None = None
    budget: int = 0
    record: PathRecord = field(default_factory=PathRecord, kw_only=True)

    @property
    def undoes(self) -> bool:
        """Whether the backward pass takes the steps back, so that no state is kept but the ends of a phase."""
        return self.solver.has_inverse and self.checkpoints == 1

    def forward(
        self, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor], condition_tensors: Sequence[Tensor] = ()
    ) -> Tensor:
        """Integrates from `y0` `(B, n)` along the times `ts` `(T, B)`; returns the states there, `(T, B, n)`."""
        y0, ts = y0.detach(), ts.detach()
        with torch.no_grad(), self.noting_writes(tensors):
            values, slope = self.engine.forward(partial(self._solve, y0, ts, condition_tensors), tensors)
        self._look(y0, values, ts, slope, tensors)
        return values

    def graph(self, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor], phase: Phase | None = None) -> Tensor | None:
        """As `forward`, but in one graph; None where that takes a solve to know the steps, or a sample fails."""
        if transforms.active() or (steps := self._ahead(self.engine, y0, ts)) is None:
            return None
        fixed = y0.detach(), ts.detach()
        bound = partial(self.bind, ts, tensors, audit=self.audit, keep_buffers=True)
        with torch.enable_grad(), self.noting_writes(tensors), bound() as field:
            found = steps(field, y0, phase)
        if found is None:
            return None
        self._arrive(*fixed, found[1], field.nfev)
        self._look(fixed[0], found[0].detach(), fixed[1], field.seen(fixed[1][0], y0), tensors)
        return found[0]

    def _ahead(self, engine: Engine, y0: Tensor, ts: Tensor) -> Foreseen | None:
        """The steps, should they be known beforehand and nobody look at each."""
        alone = self.trigger is None and self.callback is None and self.dt_max is None and len(y0)
        return engine.ahead(self.solver, ts) if alone else None

    def _arrive(self, y0: Tensor, ts: Tensor, steps: int, nfev: int) -> None:
        """Notes that all samples have come to the last time."""
        end, tried = ts[-1], torch.full((len(y0),), steps, device=y0.device)
        status, none = torch.full_like(tried, int(Status.CONVERGED)), torch.zeros_like(tried)
        self.record.reached = end
        self._report(status, tried, none, end, y0.new_zeros(len(y0)), None, nfev)

    def _report(
        self, status: Tensor, tried: Tensor, rejected: Tensor, t: Tensor, ratio: Tensor, event: Tensor | None, nfev: int
    ) -> None:
        """Notes how a solve went; see `IntegratorState` for the tensors."""
        self.record.report = self.dynamics.report(
            status, tried, ratio, nfev, self.name, accepted=tried - rejected, rejected=rejected,
            reached=self.dynamics.user_time(t), event=event, adapts=self.solver.adapts,
        )  # fmt: skip

    def _look(self, y0: Tensor, values: Tensor, ts: Tensor, slope: Tensor | None, tensors: Sequence[Tensor]) -> None:
        """Looks at the field once a solve, and tells the report what it saw."""
        if y0.shape[1] > self.dynamics.width:  # a pair, both states of which are the same at the start
            y0, values, slope = y0[:, : self.dynamics.width], values[..., : self.dynamics.width], None
        if len(y0) < 2 and not self.engine.looks:
            return
        with torch.no_grad(), self.bind(ts, self.unshared(tensors)) as field:
            if len(y0) > 1:
                self._check_samples(field, y0, ts, slope)
            if self.engine.looks:
                self.engine.look(self.solver, field, y0, values[-1], ts, self.record.report)
        self.record.report.nfev += field.nfev

    @contextmanager
    def bind(
        self, ts: Tensor, tensors: Sequence[Tensor], rows: Tensor | None = None, last: int = -1, **options: bool
    ) -> Iterator[Field]:
        """The vector field on the way along these times `(T, B)`, up to the `last`; see `Dynamics.bind`."""
        with self.dynamics.bind(list(tensors), rows=rows, **options) as field:
            yield Between(field, Within(ts[0], ts[last], self.dynamics.time_dtype)) if self.between else field

    def _check_samples(self, field: Field, y0: Tensor, ts: Tensor, slope: Tensor | None) -> None:
        """Fails samples whose slopes depend on each other's states: steps of their own are no solution then.

        Raises:
            ValueError: the state's shape is `(B,)`, so that one sample's features were taken for samples.
        """
        report, scalars, eps = self.record.report, self.dynamics.scalars, self.dynamics.eps
        slopes, every = partial(field, ts[0].clone()), partial(halves, len(y0), y0.device)  # not a view of one time
        if scalars > 1:
            found = coupled(slopes, y0, eps, every(FEW))
        elif unmoved_by_others(slopes, y0, slopes(y0) if slope is None else slope):
            return
        else:
            found = coupled(slopes, y0, eps, [alternate(y0)])
        if found is None:
            return
        if scalars > 1:
            raise ValueError(not_samples(scalars, "y0[None]", self.dynamics.joint))
        if (found := coupled(slopes, y0, eps, every())) is not None:
            report.status = Status.COUPLED.where(found, report.status)

    def _solve(
        self, y0: Tensor, ts: Tensor, condition_tensors: Sequence[Tensor], engine: Engine, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The outputs `(T, B, n)` and the slope at the start, `(B, n)`, where the solve began by asking for that."""
        if (steps := self._ahead(engine, y0, ts)) is not None:
            phase = Phase(None, self.checkpoints) if self.checkpoints else None
            with self.bind(ts, tensors, audit=self.audit, keep_buffers=True) as field:
                found = steps(field, y0, phase)
            if found is not None:
                values, count = found
                self._arrive(y0, ts, count, field.nfev)
                if phase is not None:
                    phase.end = values[-1].clone() if self.undoes else None
                    self.record.path = Path([phase])
                return values, field.seen(ts[0], y0)
        values = y0.new_empty((len(ts), *y0.shape))
        values[0] = y0
        path, whole = Path() if self.checkpoints else None, IntegratorState.start(ts, y0)
        log, whole.side = None if self.trigger is None else Log(len(self.trigger.events), whole.t), self.side
        slope, nfev = self._solve_phases(engine, whole, values, path, tensors, condition_tensors, log)
        self.record.reached, self.record.moved = whole.t, whole.number > 0
        if log is not None:
            self._check_conditions(condition_tensors, whole)
            self.record.event, self.record.met, self.record.side = whole.event, log.met(whole.y), whole.side
        self._report(whole.status, whole.tried, whole.rejected, whole.t, whole.ratio, whole.event, nfev)
        self.record.report.kept = 0 if path is None else sum(len(phase.graphs) for phase in path.phases)
        held = None if whole.arrived else hold(whole, values)
        self.record.report.note_convergence(whole.arrived)
        if path is not None:
            path.held, self.record.path = held, path
        return values, slope

    def _solve_phases(
        self, engine: Engine, state: IntegratorState, values: Tensor, path: Path | None, tensors: Sequence[Tensor],
        condition_tensors: Sequence[Tensor], log: Log | None,
    ) -> tuple[Tensor | None, int]:  # fmt: skip
        """Integrates until all have stopped, going on with those alone that do once they are few.

        Returns the slope at the start, where that was asked for, and how many evaluations it took.
        """
        rows, parents, left, nfev, slope, begun = None, [], self.solver.max_steps, 0, None, False
        narrowing = Narrowing(self, tensors, engine.keeps)
        observer = None
        if self.callback is not None and isinstance(self.dynamics, Dynamics):
            observer = Observer(self.callback, self.dynamics, state)
        keeps = path is not None and engine.keeps and self.solver.keeps and self.budget
        graphs, options = (Graphs(self.budget), {"leaves": True}) if keeps else (None, {})
        while True:
            phase = None if path is None else Phase(rows, self.checkpoints)
            inputs = self.dynamics.take(tensors, rows)
            if graphs is not None and phase is not None:
                phase.leaves = inputs = graphs.place(inputs, tensors)
            with (
                self.bind(state.ts, inputs, rows, audit=self.audit, keep_buffers=True, **options) as field,
                self._watch(condition_tensors, rows, log) as watch,
            ):
                solver, narrow = self.solver.take(rows), narrowing.wanted(state.y)
                largest = self.dt_max if self.dt_max is None or rows is None else self.dt_max[rows]
                loop = engine.loop(
                    solver, field, state, values, phase, left, narrow, rows, watch, observer, largest, graphs
                )
                if not begun:
                    loop.begin()
                    slope, begun = state.slope, True
                left -= loop.run()
            nfev += field.nfev
            if path is not None and phase is not None and phase.steps:
                phase.end = state.y if self.undoes else None
                path.phases.append(phase)
            if not loop.any_running:
                break
            if (fewer := narrowing.take(state, rows, inputs, graphs)) is not None:
                some, other, asked = fewer
                parents.append((state, some))
                state, rows, nfev = other, some if rows is None else rows[some], nfev + asked
        for parent, some in reversed(parents):
            parent.put(some, state)
            state = parent
        return slope, nfev

    @contextmanager
    def _watch(self, tensors: Sequence[Tensor], rows: Tensor | None, log: Log | None) -> Iterator[Watch | None]:
        """Looks out for the events of these samples, where there are some."""
        if self.trigger is None or log is None:
            yield None
            return
        some = self.trigger.take(tensors, rows)
        with self.trigger.bind(some, audit=self.audit, rows=rows) as conditions:
            yield Watch(self.trigger, conditions, log, rows)

    def _check_conditions(self, tensors: Sequence[Tensor], state: IntegratorState) -> None:
        """Fails the samples of which nobody can say on which side of their events they have ended."""
        assert self.trigger is not None
        assert state.event is not None
        with self.trigger.bind(list(tensors)) as conditions:
            unknown = (state.event < 0) & ~conditions.of_all(state.t, state.y).isfinite().all(1)
        state.status = Status.NON_FINITE.where(unknown, state.status)

    def mapped(self, count: int, dims: Sequence[int | None]) -> PathCall:
        """The same call with a mapped dimension of size `count` folded into the batch."""
        dynamics = self.dynamics.mapped(count, tuple(dims))
        dt_max = None if self.dt_max is None else self.dt_max.repeat(count)
        return replace(self, dynamics=dynamics, solver=self.solver.mapped(count), dt_max=dt_max)

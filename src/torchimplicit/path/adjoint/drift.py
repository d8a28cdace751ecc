"""Whether a path that was integrated backward meets the one that was integrated forward."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.path.call import PathCall
from torchimplicit.path.record import Phase, Step
from torchimplicit.path.report import PathReport, Tables
from torchimplicit.path.solver import AdaptiveSolver, PathSolver
from torchimplicit.path.stepsize import Tolerance

LIMIT = 10.0  # tolerances; beyond it the gradient tends to be further from the exact one than that, too

FIXED = 1e-3  # fixed steps have no tolerance: what a drift is measured by then
FAR = 1e6  # times the size of both ends of a path, where no path back has anything to look for


@dataclass
class BackwardReport(PathReport):
    """A `PathReport` of a backward pass: of samples that have no gradient.

    Attributes:
        tables: what to try, see `PathReport.tables_back`.
    """

    failure: ClassVar[str] = "cannot trust their gradient"

    tables: Tables = field(default=PathReport.tables_back, kw_only=True, repr=False)

    @property
    def remedies(self) -> dict[Status, str]:
        """See `Report.remedies`."""
        table = self.tables[0 if self.adapts else 1]
        return {status: str(table.get(status, "")) for status in super().remedies}

    @staticmethod
    def of(call: PathCall, start: Tensor, lost: Tensor) -> BackwardReport:
        """Of a pass back to the first times, `(B,)`, through the steps of the solve, but of the samples `lost`."""
        there = call.record.report
        status = Status.NON_FINITE.where(lost, torch.zeros_like(there.status))
        nothing = torch.zeros_like(there.accepted)
        return BackwardReport(
            status, there.accepted, torch.zeros_like(there.residual), 0,
            accepted=there.accepted, rejected=nothing, reached=call.dynamics.user_time(start),
            adapts=there.adapts, tables=there.tables_back,
        )  # fmt: skip


@dataclass
class DriftReport(BackwardReport):
    """A `BackwardReport` of a backward solve.

    Attributes:
        drift: the largest distance between a state that the backward solve came to and the one that was there, over
            the tolerance, `(B,)`; beyond `LIMIT` the status is `DRIFTED`.
    """

    drift: Tensor = field(kw_only=True)

    @staticmethod
    def along(call: PathCall, start: Tensor, drift: Tensor, nfev: int) -> DriftReport:
        """Of a pass back to the first times, `(B,)`, by the steps of the solve."""
        there = call.record.report
        status, drift = judge(torch.zeros_like(there.status), drift)
        nothing = torch.zeros_like(there.accepted)
        return DriftReport(
            status, there.accepted, torch.zeros_like(drift), nfev,
            accepted=there.accepted, rejected=nothing, reached=call.dynamics.user_time(start), drift=drift,
            adapts=there.adapts, tables=there.tables_back,
        )  # fmt: skip

    def describe(self, sample: int) -> str:
        """See `Report.describe`."""
        return f"drifted by {float(self.drift[sample]):.3g} tolerances, {super().describe(sample)}"

    def __str__(self) -> str:
        """As of a path, and the largest drift."""
        text = super().__str__()
        return f"{text}, drift up to {float(self.drift.max()):.3g} tolerances" if len(self.drift) else text

    def then(self, later: Self) -> Self:
        """See `PathReport.then`."""
        return replace(super().then(later), drift=torch.maximum(self.drift, later.drift))


def looser(there: PathSolver, back: PathSolver, like: Tensor) -> tuple[Tensor, Tensor]:
    """What drifts are held against, `(rtol, atol)`: a backward solve cannot meet states better than they are known."""
    solvers = [solver for solver in (there, back) if solver.adapts]
    if len(solvers) < 2:
        return like.new_tensor(FIXED), like.new_tensor(FIXED)
    rtols, atols = (
        [torch.as_tensor(getattr(solver, name), dtype=like.dtype, device=like.device) for solver in solvers]
        for name in ("rtol", "atol")
    )
    return torch.maximum(*rtols), torch.maximum(*atols)


class Drifts:
    """How far the steps that were undone lead from the states that they began at, by the rounding of the dtype.

    A gradient is of no use beyond half of the dtype's digits; a drift of `LIMIT` is that, of what every unknown comes
    to on the path: at its ends it may be zero.

    Args:
        like: the states of all samples, pairs `(B, n)`.
    """

    def __init__(self, like: Tensor):
        self.largest, self.nfev = torch.zeros_like(like[:, 0]), 0
        self.root = math.sqrt(torch.finfo(like.dtype).eps)
        self.size = self.start = self.bound = like[:0]  # of the states of a phase found so far, and where it began
        self.rows: Tensor | slice = slice(None)

    def begin(self, phase: Phase) -> None:
        """A phase is undone."""
        assert phase.end is not None
        start, self.rows = phase.states[0], slice(None) if phase.rows is None else phase.rows
        self.bound = FAR * (1 + torch.maximum(start.abs(), phase.end.abs()).amax(1))
        self.start = start.chunk(2, dim=1)[0]
        self.size = self.start.abs()

    def seen(self, found: Tensor) -> Tensor:
        """States found within a phase, `(M, n / 2)`."""
        self.size = torch.maximum(self.size, found.abs())
        return found

    @property
    def any_lost(self) -> bool:
        """Whether some states seen have left every bound; one read by the host."""
        return not bool((self.size.amax(1) <= self.bound).all())

    def mended(self, found: Tensor) -> Tensor:
        """States found within a phase, with those that have left every bound put back to its start.

        They are lost, but shall not bring NaN to the gradients of shared tensors.
        """
        lost = ~(found.abs().amax(1) <= self.bound)
        self.largest[self.rows] = torch.where(lost, math.inf, self.largest[self.rows])
        return self.seen(torch.where(lost.unsqueeze(1), self.start, found))

    def compare(self, phase: Phase, found: Tensor, nfev: int) -> None:
        """Holds the states found before a phase's first step against those that were there, `(M, n)`."""
        start = phase.states[0]
        size = torch.maximum(self.size.repeat(1, 2), start.abs())
        size = torch.maximum(size, self.root * size.amax(1, keepdim=True)).clamp_min(torch.finfo(size.dtype).tiny)
        drift = Tolerance(self.root / LIMIT, 0.0, start).ratio(found - start, size, size)
        self.largest[self.rows] = torch.maximum(self.largest[self.rows], drift.nan_to_num(math.inf, math.inf))
        self.nfev += nfev

    def report(self, call: PathCall, start: Tensor) -> DriftReport:
        """Of a backward solve to the first times, `(B,)`, by the steps of the solve there."""
        return DriftReport.along(call, start, self.largest, self.nfev)


class Remade:
    """How far a step that is made again leads from where it once led: a function that draws is another one by now.

    It is far where that is a hundredth of what the step moved; of implicit methods also more than they tolerate, by
    which equations of stages that are solved anew may differ.

    Args:
        solver: of the path.
        like: the states of all samples, `(B, n)`.
    """

    def __init__(self, solver: PathSolver, like: Tensor):
        self.solver, self.like = solver, like
        self.largest: Tensor | None = None  # as long as nothing was compared

    def meet(
        self, rows: Tensor | None, before: Tensor, made: Tensor, known: Tensor, behind: Step | None = None
    ) -> None:
        """Compares.

        Args:
            rows: which samples, `(M,)`, which may repeat; None for all.
            before: states at the start of the step, `(M, n)`.
            made: where it leads now.
            known: where it once led.
            behind: the step behind it, where a sample that it does not move may have stopped at an event on the way.
        """
        gap, way, size = ((made - known).abs().sum(1), (known - before).abs().sum(1), known.abs())
        play, solver = size.sum(1) * math.sqrt(torch.finfo(size.dtype).eps), self.solver.take(rows)
        if isinstance(solver, AdaptiveSolver) and solver.remembers:
            rtol, atol = (
                torch.as_tensor(each, dtype=size.dtype, device=size.device) for each in (solver.rtol, solver.atol)
            )
            play = torch.maximum(play, (atol + rtol * size).sum(1))
        far = gap / torch.add(play, way, alpha=0.01).clamp_min(torch.finfo(size.dtype).tiny)
        far = far.nan_to_num(0.0) * LIMIT
        if behind is not None:
            far = torch.where(behind.stop > behind.start, far, 0.0)
        self.largest = torch.zeros_like(self.like[:, 0]) if self.largest is None else self.largest
        if rows is None:
            self.largest = torch.maximum(self.largest, far)
        else:
            self.largest.scatter_reduce_(0, rows, far, "amax")

    @property
    def any_far(self) -> bool:
        """Whether a sample's step leads elsewhere; one read by the host."""
        return self.largest is not None and bool((self.largest > LIMIT).any())

    def report(self, call: PathCall, start: Tensor) -> DriftReport:
        """Of the backward pass to the first times, `(B,)`."""
        assert self.largest is not None
        return DriftReport.along(call, start, self.largest, 0)


def judge(status: Tensor, drift: Tensor) -> tuple[Tensor, Tensor]:
    """Statuses and drifts `(B,)` of a backward solve along a path that was integrated forward without failing.

    A solve that breaks down where there was a path has left it.
    """
    lost = (status == Status.STEP_TOO_SMALL) | (status == Status.NON_FINITE)
    drift = torch.where(lost, math.inf, drift)
    far = (status == Status.CONVERGED) & ~(drift <= LIMIT)
    return Status.DRIFTED.where(lost | far, status), drift

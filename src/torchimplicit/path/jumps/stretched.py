r"""Integration in stretches from jump to jump, each a solve of its own, and their outputs put together.

So nothing is carried over a jump but the state, and on which side of events it is. A jump's time has its gradient from
the stretch that ends there and from the one that begins: $(f_- - f_+)^\top \lambda$, the fields at both sides times
the gradient of the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.status import Report
from torchimplicit.path.adjoint.attached import attached
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.call import PathCall, PathRecord
from torchimplicit.path.dense.chain import ChainedPath
from torchimplicit.path.dense.result import PathResult, solve_recorded
from torchimplicit.path.events.watch import Met
from torchimplicit.path.inputs import Inputs, Jumps
from torchimplicit.path.jumps.crossed import BeforeJump, Crossed, crossed
from torchimplicit.path.jumps.stretches import Stretches
from torchimplicit.path.report import PathReport


def integrate(call: PathCall, adjoint: PathAdjoint, inputs: Inputs) -> Tensor:
    """The outputs `(T, B, n)`, differentiable where gradients are recorded."""
    if inputs.jumps is None:
        return attached(adjoint, call, inputs.y0, inputs.ts, inputs.tensors)
    stretched = StretchedSolve(call, inputs, inputs.jumps)
    stretches = stretched.stretches
    for k in range(len(stretches.solved)):
        if stretches.solved[k]:
            stretched.take(k, attached(adjoint, *stretched.begin(k), inputs.tensors))
        stretched.jump(k)
    return stretched.finish()


def integrate_recorded(call: PathCall, adjoint: PathAdjoint, inputs: Inputs) -> PathResult:
    """As `integrate`, of a solve with events or dense output."""
    if inputs.jumps is None:
        return solve_recorded(call, adjoint, inputs.y0, inputs.ts, inputs.tensors, inputs.event_tensors)
    stretched, paths, stops, met, t = StretchedSolve(call, inputs, inputs.jumps), [], [], [], inputs.ts[0]
    stretches = stretched.stretches
    stretches.solved[0] |= call.trigger is not None  # someone has to say on which side of events it starts
    for k in range(len(stretches.solved)):
        if stretches.solved[k]:
            before = stretched.stopped
            own, y, times = stretched.begin(k)
            found = solve_recorded(own, adjoint, y, times, inputs.tensors, inputs.event_tensors)
            stretched.take(k, found.rows, found.y)
            t = torch.where(before, t, found.t)
            paths.append(found.path)
            stops.append(stretches.edges[k + 1].detach())
            met.append(found.met)
        stretched.jump(k)
        if (passed := stretched.cross(k)) is not None and passed.met:
            met.append(passed.met)
            t = torch.where(passed.event >= 0, stretches.edges[k + 1], t)
    rows, y = stretched.finish(), stretched.y
    chain = ChainedPath(tuple(path.recorded for path in paths), torch.stack(stops), stretches.ts)
    crossings = [Met.joined(each, y) for each in zip(*met, strict=True)]
    return PathResult(rows, t, y, paths[-1].along(chain, stretched.reached, y), crossings)


@dataclass
class StretchRecord(PathRecord):
    """How the solves of a stretch went, told to the record of the whole.

    Attributes:
        whole: that record.
        number: of the stretch.
    """

    whole: PathRecord = field(kw_only=True)
    number: int = field(kw_only=True)

    def take_backward(self, report: Report) -> None:
        """See `PathRecord.take_backward`: a pass comes by the stretches last first."""
        super().take_backward(report)
        whole = self.whole
        assert isinstance(report, PathReport)
        before = whole.report.backward
        if isinstance(before, PathReport) and self.number < whole.stretch:  # else a new pass has begun
            report = before.then(report)
        whole.take_backward(report)
        whole.stretch = self.number


class StretchedSolve:
    """A solve in stretches, as far as it has come.

    Args:
        call: of the whole solve, whose record is filled in the end.
        inputs: what it depends on.
        jumps: those of the inputs.

    Attributes:
        y: states now, `(B, n)`.
        stopped: which samples go no further, `(B,)`: they have failed, or met their event.
        reached: the time that each sample reached, `(B,)`.
        before_jump: where the samples last came to a jump, or started; None without events, and at first.
        event: which event has ended a solve at a jump, -1 for none, `(B,)`.
    """

    def __init__(self, call: PathCall, inputs: Inputs, jumps: Jumps):
        everything = inputs.everything()
        if any(transforms.is_mapped(transforms.unwrapped(each)) for each in everything):
            raise RuntimeError(
                f"{call.name}(jumps=...): got torch.vmap, expected a batch in dimension 0 of the state, of which every "
                "sample has its own jumps already; try jumps of shape (J, B), or a loop"
            )
        self.whole, self.inputs, self.stretches = call, inputs, Stretches(inputs.ts, jumps)
        self.y = inputs.y0
        self.rows: list[Tensor] = []
        self.records: list[StretchRecord] = []
        self.reached = self.stretches.ts[0].detach()
        self.stopped = torch.zeros_like(self.reached, dtype=torch.bool)
        self.before_jump: BeforeJump | None = None
        self.event = torch.full_like(self.stopped, -1, dtype=torch.int64)

    def begin(self, k: int) -> tuple[PathCall, Tensor, Tensor]:
        """What to solve on a stretch: its call, states and times, `(2 + M, B)`; those that have stopped go nowhere."""
        self.records.append(StretchRecord(whole=self.whole.record, number=k))
        side = None if self.before_jump is None else self.before_jump.side
        times = torch.where(self.stopped, self.reached, self.stretches.times(k))
        return replace(self.whole, record=self.records[-1], between=True, side=side), self.y, times

    def take(self, k: int, rows: Tensor, y: Tensor | None = None) -> None:
        """Takes what was found on a stretch: the states at its times, and at its end, should that be another."""
        record, stretches = self.records[-1], self.stretches
        began, self.y = self.y, rows[-1] if y is None else y
        rows = rows[1:-1]
        stopped = self.stopped | (record.reached < stretches.edges[k + 1].detach())
        if record.event is not None:
            stopped = stopped | (record.event >= 0)
        if stretches.wants_times and stretches.output_at_end[k]:
            slope = self._slope(stretches.edges[k : k + 2])
            rows = rows + torch.where(stopped, 0.0, stretches.beyond(k)).unsqueeze(2).to(slope.dtype) * slope
        self.rows.append(rows)
        self._note_before_jump(record, k, began)
        self.reached = torch.where(self.stopped, self.reached, record.reached)
        self.stopped = stopped

    def _note_before_jump(self, record: PathRecord, k: int, began: Tensor) -> None:
        """Notes where those samples that went a way on a stretch stand before the jump behind it."""
        if record.side is None:
            return
        start, end = (transforms.unwrapped(each).detach() for each in self.stretches.edges[k : k + 2])
        y, now = transforms.unwrapped(self.y).detach(), end - torch.finfo(end.dtype).eps ** 0.5 * (end - start)
        just = [(each.t >= now).any(0) for each in record.met]
        size = torch.maximum(transforms.unwrapped(began).detach().abs(), y.abs())
        size = size if self.before_jump is None else torch.maximum(self.before_jump.size, size)
        before_jump = BeforeJump(record.side, y, size, torch.stack(just, dim=1))
        if self.before_jump is not None:
            went = (~self.stopped & (end > start)).unsqueeze(1)
            before_jump = BeforeJump(
                *(torch.where(went, *both) for both in zip(before_jump, self.before_jump, strict=True))
            )
        self.before_jump = before_jump

    def jump(self, k: int) -> None:
        """Goes over the jump behind a stretch."""
        stretches = self.stretches
        if not stretches.solved[k]:
            self.rows.append(self.y.unsqueeze(0)[:0])
        if k == 0 and stretches.jumps_at_start and stretches.wants_times:  # on a stretch of no length no step was made
            here = stretches.edges[1] == stretches.edges[0]
            moved = torch.where(here, stretches.edges[1] - stretches.edges[0], 0.0).unsqueeze(1)
            self.y = self.y + moved.to(self.y.dtype) * self._slope(stretches.ts[[0, -1]], start=True)
        if stretches.doses is not None and k < len(stretches.doses):
            self.y = torch.where(self.stopped.unsqueeze(1), self.y, self.y + stretches.doses[k])

    def cross(self, k: int) -> Crossed | None:
        """Which events the jump behind a stretch carries samples past; of several at a time, all of them together."""
        stretches, trigger, before_jump = self.stretches, self.whole.trigger, self.before_jump
        if trigger is None or before_jump is None or k + 2 == len(stretches.edges):
            return None
        edges = transforms.unwrapped(stretches.edges).detach()
        goes_on = ~self.stopped & (edges[k + 2] > edges[k + 1])
        found = crossed(trigger, self.inputs.event_tensors, before_jump, stretches.edges[k + 1], self.y, goes_on)
        self.before_jump, ends = before_jump._replace(side=found.side), found.event >= 0
        self.event, self.stopped = torch.where(ends, found.event, self.event), self.stopped | ends
        return found

    def _slope(self, ends: Tensor, start: bool = False) -> Tensor:
        """The slopes within a stretch at one of its ends, `(B, n)`, zero where they are not finite."""
        call = replace(self.whole, between=True)
        with call.bind(ends, call.unshared(self.inputs.tensors)) as field, torch.enable_grad():
            return field(ends[0 if start else -1].detach(), self.y).nan_to_num(0.0, 0.0, 0.0)

    def finish(self) -> Tensor:
        """The outputs `(T, B, n)`; fills the record of the whole solve."""
        record, report = self.whole.record, reduce(PathReport.then, (each.report for each in self.records))
        record.report, record.reached = report, self.reached
        if report.event is not None:
            report.event = torch.where(self.event >= 0, self.event, report.event)
        record.event = report.event
        record.mutated = tuple({i for each in self.records for i in each.mutated})
        for each in self.records:
            if each.lost is not None:
                record.lose(each.lost)
        return self.stretches.outputs(self.inputs.y0, self.rows)

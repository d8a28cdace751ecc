"""A solve to its events, or for dense output: all that can be asked of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.checkpointed import Checkpointed, Direct
from torchimplicit.path.adjoint.replay import note_lost
from torchimplicit.path.call import PathCall
from torchimplicit.path.dense.attach import Recorded, attached
from torchimplicit.path.dense.dense_path import DensePath
from torchimplicit.path.dense.evaluate import RecordedPath, RecordedSolve
from torchimplicit.path.events.watch import Met
from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.solver import PathSolver


class PathResult(NamedTuple):
    """A solve with all that was asked for: outputs `(T, B, n)`, and its ends.

    Attributes:
        rows: the outputs.
        t: when each sample's solve ended, as solvers count it, `(B,)`.
        y: its state there, `(B, n)`.
        path: the path as a function of time.
        met: the crossings of every event.
    """

    rows: Tensor
    t: Tensor
    y: Tensor
    path: DensePath
    met: Sequence[Met] = ()

    def detach(self) -> PathResult:
        """The same without a gradient."""
        met = [Met(*(each.detach() for each in one)) for one in self.met]
        return PathResult(self.rows.detach(), self.t.detach(), self.y.detach(), self.path.detach(), met)

    def beside(self, other: PathResult, which: Tensor) -> PathResult:
        """This, detached, for some samples `(B,)`, another solve for the rest."""
        nonfinite = which.unsqueeze(1)
        rows, y = (torch.where(nonfinite, *both) for both in ((self.rows, other.rows), (self.y, other.y)))
        met = []
        for one, two in zip(self.met, other.met, strict=True):
            count = max(len(one.t), len(two.t))
            one, two = one.padded(count, self.y), two.padded(count, other.y)
            met.append(Met(torch.where(which, one.t, two.t), torch.where(nonfinite, one.y, two.y)))
        return PathResult(rows, torch.where(which, self.t, other.t), y, self.path.beside(other.path, which, y), met)


def solve_recorded(
    call: PathCall, adjoint: PathAdjoint, y0: Tensor, ts: Tensor, tensors: list[Tensor], event_tensors: list[Tensor]
) -> PathResult:
    """Integrates to events, or for dense output; differentiable as `PathAdjoint.solve`, and by the events' tensors.

    Args:
        call: the call.
        adjoint: how to differentiate; one that keeps the steps.
        y0: start, `(B, n)`, with its graph.
        ts: output times, `(T, B)`, increasing, with their graph.
        tensors: the explicit tensors, with their graphs.
        event_tensors: those of the events' conditions.
    """
    assert isinstance(call.dynamics, Dynamics)
    detached = [each.detach() for each in (y0, ts, *tensors, *event_tensors)]
    known, starts, stops, reached, event, *found = RecordedSolve.apply(call, len(tensors), *detached)
    met = [Met(*each) for each in zip(found[::2], found[1::2], strict=True)]
    in_one = isinstance(adjoint, Direct)
    recorded = RecordedPath(call, call.record.take_path(), starts, stops, y0, ts, tuple(tensors), in_one)
    rows, t, y = known, reached, known[-1]
    if transforms.differentiating((y0, ts, *tensors, *event_tensors)):
        note_lost(call, starts, stops, y0, ts, tensors)
        rows, t, y, met = attached(recorded, event_tensors, Recorded(known, reached, event, met))
        lost = call.record.lost
        if lost is not None:
            rows, y = (torch.where(lost.unsqueeze(1), *both) for both in ((known, rows), (known[-1], y)))
            met = [Met(one.t, torch.where(lost.unsqueeze(1), one.y.detach(), one.y)) for one in met]
    return PathResult(rows, t, y, DensePath(recorded, call.dynamics, reached, y), met)


def check_recorded(name: str, solver: PathSolver, adjoint: PathAdjoint) -> None:
    """Refuses a solver that knows no path inside its steps, and an adjoint that keeps no steps to look at.

    Args:
        name: of the public function.
        solver: the method.
        adjoint: how to differentiate.

    Raises:
        ValueError: `Reversible()`, `Backsolve()`, for example.
    """
    if solver.stops_at_outputs and not solver.knows_inside:
        raise ValueError(
            f"{name}(solver={solver!r}): expected a solver that knows the path inside its steps with event=... or "
            "dense=True; try Tsit5()"
        )
    if not isinstance(adjoint, Checkpointed | Direct):
        raise ValueError(
            f"{name}(adjoint={adjoint!r}): expected Checkpointed() or Direct() with event=... or dense=True, which "
            "differentiate the steps that were taken"
        )

"""The lean backward pass through a recorded path: the graph of one step, or of a few, at a time, last first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.path.adjoint.drift import Drifts, Remade
from torchimplicit.path.call import PathCall
from torchimplicit.path.engine import PhaseBackward
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.pair import PairSolver
from torchimplicit.path.query import ByStep, Query
from torchimplicit.path.record import Outputs, Path, Phase, Step
from torchimplicit.path.solver import PathSolver
from torchimplicit.path.undo import Mend, Undo


def backprop(
    call: PathCall,
    path: Path,
    ts: Tensor,
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    grad: Tensor,
    query: Query | None = None,
    known: Tensor | None = None,
) -> Gradients:
    """The gradients of the start, of the times and of the explicit tensors.

    Args:
        call: the call that was solved.
        path: its record.
        ts: the times of the query, `(T, B)`.
        tensors: the explicit tensors.
        needs: which of the times and the tensors want a gradient.
        grad: of what was asked for, `(T, B, (1 + order) n)`.
        query: what was asked of the path; None for its outputs.
        known: the outputs `(T, B, n)`, where they are at hand: of a path that is `short`.
    """
    query = Query.of_outputs(path) if query is None else query
    inputs = [ts.detach(), *(tensor.detach() for tensor in call.unshared(tensors))]
    width = grad.shape[2] // (1 + query.order)
    cotangent = torch.zeros_like(grad[0, :, :width])  # of the states at the time that has been reached, going backward
    # Outputs that were not reached are the last state: their gradients begin there, before any step.
    if query.held is not None:
        places, samples = query.held.places, query.held.samples
        cotangent.index_put_((samples,), grad[places, samples, :width], accumulate=True)
    totals: Gradients = [None] * len(inputs)
    drifts, remade = Drifts(cotangent) if call.undoes else None, Remade(call.solver, cotangent)
    backward = Backprop(call, query, needs, drifts, remade, known)
    for phase, outputs in zip(reversed(path.phases), reversed(query.outputs), strict=True):
        rows = phase.rows
        if rows is None:
            cotangent, found = backward.phase(phase, outputs, cotangent, inputs, grad)
        else:
            some = [inputs[0][:, rows], *call.dynamics.take(inputs[1:], rows)]
            moved, found = backward.phase(phase, outputs, cotangent[rows], some, grad[:, rows])
            cotangent = cotangent.index_copy(0, rows, moved)
            dims = [1, *(0 if batched else None for batched in call.dynamics.batched)]
            found = [_spread(*each, rows) for each in zip(found, inputs, dims, strict=True)]
        totals = summed(totals, found)
    if backward.drifts is not None:
        call.finish_backward(backward.drifts.report(call, ts[0]))
    elif backward.remade.any_far:
        call.finish_backward(backward.remade.report(call, ts[0]))
    return [cotangent + grad[0, :, :width], *totals]  # the first output is the start itself


@dataclass(frozen=True)
class Backprop:
    """One backward pass.

    Attributes:
        call: the call that was solved.
        query: what was asked of the path.
        needs: which of the times and the tensors want a gradient.
        drifts: how far undone steps lead from the path; None where steps are made again.
        remade: how far those lead from it.
        known: see `backprop`.
    """

    call: PathCall
    query: Query
    needs: Sequence[bool]
    drifts: Drifts | None
    remade: Remade
    known: Tensor | None = None

    def phase(
        self, phase: Phase, outputs: ByStep, cotangent: Tensor, inputs: list[Tensor], grad: Tensor
    ) -> tuple[Tensor, Gradients]:
        """The gradient of the states before a phase, from that after it, and the gradients of its inputs."""
        call, query = self.call, self.query
        # Leaves anew for every phase: a step's graph must end at them, and not lead into the caller's.
        leaves = [each.detach().requires_grad_(need) for each, need in zip(inputs, self.needs, strict=True)]
        if phase.leaves is not None:  # but for those of graphs that are kept
            leaves[1:] = phase.leaves
        wanted = [leaf for leaf, need in zip(leaves, self.needs, strict=True) if need]
        solver, last = call.solver.take(phase.rows), -1 if query.given is None else query.given - 1
        with call.bind(leaves[0], leaves[1:], phase.rows, last) as field:

            def retrace() -> Iterator[tuple[Step, Outputs | None, Tensor]]:
                for number, y in _retraced(solver, field, phase, cotangent):
                    yield phase.steps[number], outputs.get(number), y

            if self.drifts is None:
                known = self.known if self.known is None or phase.rows is None else self.known[:, phase.rows]
                meet = partial(_meet, self.remade, phase.rows)
                whole = PhaseBackward(solver, field, phase, retrace, query, leaves[0], wanted, grad, meet, known)
                before, totals = call.engine.backward(whole, cotangent)
            else:
                assert isinstance(solver, PairSolver)
                undo = partial(solver.undo, field, leaves[0], wanted)
                before, totals = _undone(undo, self.drifts, phase, outputs, grad, cotangent)
        rest = iter(totals)
        return before, [next(rest) if need else None for need in self.needs]


def _meet(
    remade: Remade, rows: Tensor | None, before: Tensor, made: Tensor, known: Tensor, behind: Step | None = None,
    samples: Tensor | None = None,
) -> None:  # fmt: skip
    """See `PhaseBackward.meet`; of a phase of these rows."""
    if samples is not None:
        rows = samples if rows is None else rows[samples]
    remade.meet(rows, before, made, known, behind)


def _undone(
    undo: Callable[[Mend], Undo], drifts: Drifts, phase: Phase, outputs: ByStep, grad: Tensor, cotangent: Tensor
) -> tuple[Tensor, Gradients]:
    """The gradients of the states before a phase and of the leaves, by steps taken back: outputs are at their ends."""
    assert phase.end is not None
    for mend in (drifts.seen, drifts.mended):  # few paths leave every bound: first without a look at each state
        drifts.begin(phase)
        back = undo(mend)
        y, to = phase.end.chunk(2, dim=1), cotangent.chunk(2, dim=1)
        with torch.no_grad():
            for number in reversed(range(len(phase.steps))):
                if (landed := outputs.get(number)) is not None:
                    some = grad[landed.places, landed.samples]
                    more = torch.zeros_like(cotangent).index_put_((landed.samples,), some, accumulate=True)
                    to = [torch.add(*each) for each in zip(to, more.chunk(2, dim=1), strict=True)]
                y, to = back.step(phase.steps[number], y, to)
            to = back.finish(to)
        if not drifts.any_lost:
            break
    drifts.compare(phase, torch.cat([*y], dim=1), back.field.nfev)
    return torch.cat([*to], dim=1), back.totals


def _retraced(solver: PathSolver, field: Field, phase: Phase, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The numbers of the steps of a phase, last first, each with the state before it: kept, or integrated to again."""
    again = None

    def advance(step: Step, y: Tensor) -> Tensor:
        nonlocal again
        with torch.no_grad():
            again = solver.stepper(like, graph=False) if again is None else again
            other = again(field, step.span, y, None).y
            return other if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), other, y)

    yield from phase.backwards(advance)


def _spread(some: Tensor | None, whole: Tensor, dim: int | None, rows: Tensor) -> Tensor | None:
    """A gradient of some samples' part of a tensor, as one of the whole tensor."""
    return some if some is None or dim is None else torch.zeros_like(whole).index_copy(dim, rows, some)

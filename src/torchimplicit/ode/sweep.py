"""The lean backward pass through a recorded path: one step's graph at a time, last step first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.ode.call import PathCall
from torchimplicit.ode.chunks import pull_chunks
from torchimplicit.ode.compiled import CompileError
from torchimplicit.ode.drift import Drifts
from torchimplicit.ode.gradients import Gradients, summed
from torchimplicit.ode.record import Path, Phase, Step
from torchimplicit.ode.replay import make_step


def sweep(
    call: PathCall, path: Path, ts: Tensor, tensors: Sequence[Tensor], needs: Sequence[bool], grad: Tensor
) -> Gradients:
    """The gradients of the start, of the output times and of the explicit tensors.

    Args:
        call: the call that walked.
        path: its record.
        ts: output times, `(T, B)`.
        tensors: the explicit tensors.
        needs: which of the times and the tensors want a gradient.
        grad: of the outputs, `(T, B, n)`; of their derivatives too where the path has an `order`.
    """
    inputs = [ts.detach(), *(tensor.detach() for tensor in call.unshared(tensors))]
    width = grad.shape[2] // (1 + path.order)
    flow = torch.zeros_like(grad[0, :, :width])  # of the states at the time that has been reached, walking back
    if path.held is not None:
        places, samples = path.held.places, path.held.samples
        flow.index_put_((samples,), grad[places, samples, :width], accumulate=True)
    totals: Gradients = [None] * len(inputs)
    drifts = Drifts(flow) if call.solver.has_inverse else None
    for phase in reversed(path.phases):
        rows = phase.rows
        if rows is None:
            flow, found = _sweep_phase(call, path, phase, flow, inputs, needs, grad, drifts)
        else:
            some = [inputs[0][:, rows], *call.dynamics.take(inputs[1:], rows)]
            moved, found = _sweep_phase(call, path, phase, flow[rows], some, needs, grad[:, rows], drifts)
            flow = flow.index_copy(0, rows, moved)
            dims = [1, *(0 if batched else None for batched in call.dynamics.batched)]
            found = [_spread(*each, rows) for each in zip(found, inputs, dims, strict=True)]
        totals = summed(totals, found)
    if drifts is not None:
        call.finish_backward(drifts.report(call, ts[0]))
    return [flow + grad[0, :, :width], *totals]


def _sweep_phase(
    call: PathCall,
    path: Path,
    phase: Phase,
    flow: Tensor,
    inputs: list[Tensor],
    needs: Sequence[bool],
    grad: Tensor,
    drifts: Drifts | None,
) -> tuple[Tensor, Gradients]:
    """The gradient of the states before a phase, from that after it, and the gradients of its inputs."""
    leaves = [each.detach().requires_grad_(need) for each, need in zip(inputs, needs, strict=True)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    ts, wants_times = leaves[0], needs[0]
    totals: Gradients = [None] * len(wanted)
    with call.dynamics.bind(leaves[1:], rows=phase.rows) as field:
        compiled = bool(call.compile) and not wants_times and path.given is None
        with torch.no_grad():
            again = call.solver.take(phase.rows).stepper(flow)

        def advance(step: Step, y: Tensor) -> Tensor:
            with torch.no_grad():
                done = again(field, step.start, step.stop - step.start, y, None)
                return done.y if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), done.y, y)

        with torch.enable_grad():
            stepper = call.solver.take(phase.rows).stepper(flow)
        with torch.no_grad():
            undo = call.solver.undoer(flow) if call.solver.has_inverse else None

        def retreat(step: Step, y: Tensor) -> Tensor:
            assert undo is not None
            assert drifts is not None
            with torch.no_grad():
                before = drifts.mended(phase, undo(field, step.start, step.stop - step.start, y))
                return before if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), before, y)

        y = phase.states[0]
        if compiled:
            try:
                flow, totals = pull_chunks(call.solver, field, phase.backwards(advance), flow, ts, wanted, grad)
            except CompileError:
                if call.compile != "auto":
                    raise
                compiled = False
        for step, y in () if compiled else phase.backwards(advance) if undo is None else phase.undone(retreat):
            with torch.enable_grad():
                leaf = y.detach().requires_grad_()
                end, values = make_step(stepper, field, step, leaf, ts, path, wants_times)
            ends, flows = [end], [flow]
            if step.outputs is not None and values is not None:
                ends, flows = [end, values], [flow, grad[step.outputs.places, step.outputs.samples]]
            flow, *found = torch.autograd.grad(ends, [leaf, *wanted], flows, allow_unused=True)
            totals = summed(totals, found)
    if drifts is not None:
        drifts.compare(phase, y, field.nfev)
    rest = iter(totals)
    return flow, [next(rest) if need else None for need in needs]


def _spread(some: Tensor | None, whole: Tensor, dim: int | None, rows: Tensor) -> Tensor | None:
    """A gradient of some samples' part of a tensor, as one of the whole tensor."""
    return some if some is None or dim is None else torch.zeros_like(whole).index_copy(dim, rows, some)

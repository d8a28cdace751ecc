"""One solve, with the gradient of its adjoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.status import Status
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.drift import LIMIT
from torchimplicit.path.call import PathCall
from torchimplicit.path.pair import PairSolver


def attached(adjoint: PathAdjoint, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
    """The outputs `(T, B, n)`, differentiable where gradients are recorded.

    Arguments as those of `PathAdjoint.solve`.
    """
    call = adjoint.prepared(call, y0)
    solve = adjoint.solve if torch.is_grad_enabled() else adjoint.forward
    if not isinstance(call.solver, PairSolver):
        return solve(call, y0, ts, tensors)
    values = solve(call, torch.cat((y0, y0), dim=1), ts, tensors)
    y, z = values.chunk(2, dim=2)
    if not transforms.active():
        _judge(call, call.solver, ts.detach(), y.detach(), z.detach(), tensors)
    return y.contiguous()


def _judge(call: PathCall, solver: PairSolver, ts: Tensor, y: Tensor, z: Tensor, tensors: Sequence[Tensor]) -> None:
    """Fails samples whose two states have parted.

    The estimate of a step's error does not see that: where the pair is unstable, both states are wrong, and apart.
    """
    report = call.record.report
    with torch.no_grad(), call.bind(ts, call.unshared(tensors)) as field:
        apart = solver.apart(field, ts, y, z)
    report.nfev += field.nfev
    parted = (report.status == Status.CONVERGED) & ~(apart <= LIMIT)
    report.status = Status.DRIFTED.where(parted, report.status)

"""Keeping a sample whose path is not finite out of everybody's gradients: see `adjoint.quarantine`."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.adjoint.quarantine import replaced, stand_ins, unmoved, warn_of_leak
from torchimplicit.core.status import Status
from torchimplicit.ode.adjoint import PathAdjoint
from torchimplicit.ode.call import PathCall, PathRecord
from torchimplicit.ode.dynamics import Dynamics


def quarantine(
    call: PathCall, adjoint: PathAdjoint, values: Tensor, y0: Tensor, ts: Tensor, tensors: list[Tensor], sick: Tensor
) -> Tensor:
    """The outputs again, differentiable without the sick samples: healthy ones walk in their place.

    Args:
        call: the call that gave `values`.
        adjoint: how to differentiate.
        values: the outputs `(T, B, n)`, sick samples held at their last finite state.
        y0: the start, `(B, n)`.
        ts: output times, `(T, B)`.
        tensors: the explicit tensors.
        sick: which samples are not finite, `(B,)` bool.
    """
    held = values.detach()
    if bool(sick.all()):
        return unmoved(held, [y0, ts, *tensors])
    rows = stand_ins(sick)
    assert isinstance(call.dynamics, Dynamics)
    dynamics = copy(call.dynamics)
    dynamics.sign = None if dynamics.sign is None else dynamics.sign[rows]
    start = y0.detach()[rows]
    # At the start and at other states: where a weight meets a zero of the start, replacing it changes nothing.
    probes = [(ts[0], start), (ts[-1], start + torch.rand_like(start)), (ts[-1], start - torch.rand_like(start))]

    def slopes(tensors: list[Tensor]) -> Tensor:
        with torch.no_grad(), dynamics.bind(call.unshared(tensors)) as field:
            return torch.stack([field(t.detach()[rows], y) for t, y in probes], dim=1)

    healthy = replaced(slopes, tensors, dynamics.explicit.shared, rows, sick)
    again = replace(call, dynamics=dynamics, audit=False, record=PathRecord())
    found = adjoint.solve(again, y0[rows], ts[:, rows], healthy)
    report = again.record.report
    assert report is not None
    if bool((report.status == Status.NON_FINITE).any()):
        warn_of_leak()
    again.record.report = call.record.report  # that of a walk back goes to the first walk's
    return torch.where(sick.unsqueeze(1), held, found)

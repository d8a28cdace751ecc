"""Iterates on the way to a solution, with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.adjoint.call import Adjoint, PointCall
from torchimplicit.adjoint.quarantine import without
from torchimplicit.adjoint.unrolled import Unrolled
from torchimplicit.core import transforms


def attached(
    call: PointCall,
    adjoint: Adjoint,
    iterates: list[Tensor],
    tensors: list[Tensor],
    nonfinite: Tensor | None,
    again: list[Tensor] | None,
) -> list[Tensor]:
    """Iterates `(B, n)` with gradients, without non-finite samples', whose stand-ins' `again` holds."""
    if transforms.active() and not isinstance(adjoint, Unrolled):
        raise NotImplementedError("save_steps does not work under torch.func transforms but with adjoint=Unrolled()")
    if nonfinite is None:
        return [adjoint.attach(call, z, tensors) for z in iterates]
    if again is not None and isinstance(adjoint, Unrolled):  # whose iterates have graphs
        return [torch.where(nonfinite[:, None], z.detach(), new) for z, new in zip(iterates, again, strict=True)]
    return [
        without(call, z.detach(), tensors, nonfinite, lambda rows, healthy, z=z: adjoint.attach(call, z[rows], healthy))
        for z in iterates
    ]

"""Differentiation through the solver's own iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchimplicit.adjoint.call import Adjoint, Call
from torchimplicit.core import transforms
from torchimplicit.core.options import require


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """Backpropagates through every step that the solver took: memory grows with the steps.

    The derivative of the computation rather than of the solution; the two agree once the solve has converged. The
    reference that `Implicit` is checked against, and a choice for a handful of steps or where the start `z0` needs a
    gradient. Not for deep solves (memory) nor under `torch.vmap`.

    Args:
        checkpoint: recompute the function in the backward pass instead of keeping its activations: one state per step
            instead, for one evaluation more.
    """

    checkpoint: bool = False

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "checkpoint", isinstance(self.checkpoint, bool), "True or False")

    def solve(self, call: Call, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `Adjoint.solve`."""
        if any(transforms.is_mapped(tensor) for tensor in (z0, *tensors)):
            raise NotImplementedError(
                "Unrolled does not work under torch.vmap, whose samples cannot stop on their own; try Implicit()"
            )
        if self.checkpoint and transforms.active():
            raise NotImplementedError(
                "Unrolled(checkpoint=True) does not work under torch.func transforms; try Unrolled()"
            )
        if call.audit:
            with call.problem.bind(tensors, audit=True) as residual:
                residual(z0.detach())
        with call.problem.bind(tensors) as residual:
            if self.checkpoint:
                residual.aside = lambda z: _evaluate(call, z, *tensors)
                residual.evaluate = lambda z, _: checkpoint(_evaluate, call, z, *tensors, use_reentrant=False)
            result = call.run(residual, z0)
        call.record.report, call.record.result = result.report, result
        return z0.clone() if result.z is z0 else result.z

    def attach(self, call: Call, z: Tensor, tensors: list[Tensor]) -> Tensor:
        """An iterate has its gradient already."""
        return z


def _evaluate(call: Call, z: Tensor, *tensors: Tensor) -> Any:
    """One evaluation that binds its own tensors, for it runs again in the backward pass."""
    with call.problem.bind(tensors) as residual:
        return residual.evaluate(z, None)

"""Phantom gradients and Jacobian-free backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from torchimplicit.adjoint.call import Adjoint, PointCall
from torchimplicit.adjoint.gate import Gate
from torchimplicit.adjoint.implicit import ImplicitSolve
from torchimplicit.core import transforms
from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.linear import GMRES


@dataclass(frozen=True)
class Phantom(Adjoint):
    r"""Backpropagates through a few damped steps from the solution: cheap, biased, a descent direction.

    `Phantom()`, one undamped step, is Jacobian-free backpropagation (JFB). With $k$ steps and damping $\lambda$ the
    gradient is that of a Neumann series of $k$ terms of $(1-\lambda) I + \lambda J$; for $\|J\| = \rho < 1$ and
    $\lambda = 1$ its relative error is at most $\rho^k$. There is no backward solve and so no backward report. Use it
    to train fast while the map contracts well; not for gradient checks, second derivatives or hyperparameters.

    Sources: S. Wu Fung et al., AAAI 2022, arXiv 2103.12803 (JFB);
    Z. Geng et al., NeurIPS 2021, arXiv 2111.05177, eq. 9 (phantom gradients).

    Args:
        steps: steps to differentiate through, >= 1; each keeps one evaluation's activations.
        damping: factor of each step, in (0, 1].
    """

    steps: int = 1
    damping: float = 1.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "steps")
        require(self, "damping", is_number(self.damping) and 0 < self.damping <= 1, "a number in (0, 1]")

    def solve(self, call: PointCall, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `Adjoint.solve`."""
        solution: Tensor = ImplicitSolve.apply(call, GMRES(), z0.detach(), *(tensor.detach() for tensor in tensors))
        return self.attach(call, solution, tensors)

    def attach(self, call: PointCall, z: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `Adjoint.attach`."""
        if transforms.active() or not torch.is_grad_enabled():
            return call.phantom(z, tensors, self.steps, self.damping)
        z = z.detach()
        steps = partial(PointCall.moved, steps=self.steps, damping=self.damping)
        gate = Gate(call, steps, z, tensors)
        return gate.leave(steps(call, z, gate.enter()), z)

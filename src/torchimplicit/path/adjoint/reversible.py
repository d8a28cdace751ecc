"""An exact gradient in constant memory, of a method that can be undone step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from torchimplicit.core.options import is_number, require
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.checkpointed import CheckpointedSolve
from torchimplicit.path.call import PathCall


@dataclass(frozen=True)
class Reversible(PathAdjoint):
    r"""Integrates by a method that has an inverse: exact gradients of the steps taken, and no state kept on the way.

    Two states $y$ and $z$ are carried along, both the start at first, and
    $y_{k+1} = \lambda y_k + (1 - \lambda) z_k + \Psi_h(t_k, z_k)$, $z_{k+1} = z_k - \Psi_{-h}(t_{k+1}, y_{k+1})$, where
    $\Psi_h$ is what the solver's step adds to a state. Backward undoes each step by solving these for $y_k$ and $z_k$.
    The method is of the solver's order; its steps end at the output times. It changes the value, by as much as the
    error of the steps, which no other adjoint does. Kept are the times of the steps.

    Twice the evaluations forward, and as many backward, each with its derivative; so slower than `Checkpointed()` and
    for states too large to keep some of them. Rounding grows on the way back, by $\lambda^{-1}$ a step and with fields
    that contract: where that adds up, a sample is `DRIFTED` (`solution.backward` has the `drift`). On damped fields the
    pair itself is unstable, the sooner the closer the coupling is to 1: a sample whose two states part by more than ten
    tolerances is `DRIFTED`, forward. So not for stiff or strongly damped fields.

    Of stochastic paths, $\Psi_{-h}$ sees the noise backward, too. Steps have a given size; their paths are rougher, and
    the two states have parted where they are further from each other than a fifth of the way that a sample goes.
    `sde.ReversibleHeun`, a pair of its own without a coupling, is undone as it is.

    Source: S. McCallum, J. Foster, Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv
    2410.11648, section 3.

    Args:
        coupling: $\lambda$, in (0, 1]; a smaller one pulls the two states together, and is less exact backward.
    """

    checkpoints: ClassVar[int] = 1

    coupling: float = 0.999

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "coupling", is_number(self.coupling) and 0 < self.coupling <= 1, "a number in (0, 1]")

    def prepared(self, call: PathCall, y0: Tensor) -> PathCall:
        """See `PathAdjoint.prepared`: by a method that has an inverse."""
        return replace(call, solver=call.solver.paired(call.name, y0, self.coupling))

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.solve`."""
        return CheckpointedSolve.apply(call, y0, ts, *tensors)[0]

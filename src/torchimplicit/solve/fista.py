"""FISTA: Nesterov's momentum on a fixed-point iteration, restarted where it overshoots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.core.problem import Residual
from torchimplicit.solve.loop import Solver


class FISTAState(NamedTuple):
    """Iterate and residual, the image of the iterate before, `(B, n)` each, and the momentum's age `t`, `(B, 1)`."""

    z: Tensor
    residual: Tensor
    image: Tensor
    age: Tensor


@dataclass(frozen=True, kw_only=True)
class FISTA(Solver):
    r"""Momentum on a fixed-point iteration: FISTA, when the map is a `ProximalGradient`. One evaluation a step.

    $x_k = f(z_k)$, $z_{k+1} = x_k + \frac{t_k - 1}{t_{k+1}} (x_k - x_{k-1})$, $t_{k+1} = (1 + \sqrt{1 + 4 t_k^2}) /
    2$. It is a solver and no map, for its state has no fixed point: $t$ grows. So every such map can have it, and the
    condition that is differentiated is the map's own. On a gradient step of an energy with condition number $\kappa$ it
    takes some $\sqrt\kappa$ steps for an accuracy that `Picard` needs $\kappa$ for; without restarts, many more once
    the momentum is too large for the energy's strong convexity.

    Use it for the maps of descent (projected, proximal gradients) where `Anderson` stagnates at their kinks, as it does
    on ill-conditioned ones, or takes too much memory; where it does not, it takes fewer steps. Not for maps whose
    Jacobian is far from symmetric (cells of networks), where momentum leads away. The iterates are extrapolated: one
    more evaluation of the map puts the solution into the set that it projects onto.

    Source: A. Beck and M. Teboulle, SIAM J. Imaging Sci. 2 (2009) 183, equations 4.1 to 4.3; the restart, where the
    last step points uphill, from B. O'Donoghue and E. Candes, Found. Comput. Math. 15 (2015) 715, section 3.2, sample
    by sample.

    Args:
        restart: whether to forget the momentum of a sample that points uphill.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    patience: ClassVar[int] = 200  # momentum makes residuals ripple

    max_steps: int = 1000
    restart: bool = True

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "restart", isinstance(self.restart, bool), "True or False")

    def init(self, problem: Residual, z: Tensor) -> FISTAState:
        """The state at the start, without momentum."""
        residual = problem(z)
        return FISTAState(z, residual, z, torch.ones_like(residual[:, :1].detach()))

    def step(self, problem: Residual, state: FISTAState) -> FISTAState:
        """One step with momentum."""
        image = state.z - state.residual
        way = image - state.image
        age = (1 + (1 + 4 * state.age.square()).sqrt()) / 2
        momentum = (state.age - 1) / age
        if self.restart:
            uphill = (state.residual.detach() * way.detach()).sum(1, keepdim=True) > 0
            momentum, age = torch.where(uphill, 0, momentum), torch.where(uphill, 1, age)
        z = image + momentum * way
        return FISTAState(z, problem(z), image, age)

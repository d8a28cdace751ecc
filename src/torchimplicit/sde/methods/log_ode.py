"""The log-ODE method for Stratonovich equations whose columns do not commute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import NoiseKind, driven
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.solver import Calculus, SDESolver
from torchimplicit.sde.structure import Structure


@dataclass(frozen=True, kw_only=True)
class LogODE(SDESolver, FixedSolver):
    r"""A step of the midpoint method for the ordinary equation that a step of noise is, to second order.

    That is $z' = h f + \sum_i g_i \Delta W_i + \sum_{i<j} A_{ij} [g_i, g_j]$ from $z(0) = y_k$ to $z(1) = y_{k+1}$,
    with the brackets $[g_i, g_j] = (g_i \cdot \nabla) g_j - (g_j \cdot \nabla) g_i$ and the Levy areas
    $A_{ij} = \frac12 \int (W_i\,dW_j - W_j\,dW_i)$. The areas being small, the last sum is the difference
    $\sum_j g_j(z + \sum_i A_{ij} g_i) - g_j(z)$, up to $h^2$: no Jacobian is asked for.

    Strong order 1 given the areas, where no method without them has more than 1/2; weak order 1. A
    `Brownian(base=...)` has them of one path at steps of `base`, `2 base`, `4 base`, ..., by which the order is
    measured. Over one step, or one `base`, they are drawn in Foster's approximation: of the right mean and variance
    given $\Delta W$ and the space-time area, not of the very law. To the path whose areas nobody has seen, the order
    is 1/2, as of every method.

    For general noise, and diagonal noise whose $g_i$ sees other unknowns, Stratonovich. Two evaluations of the drift a
    step, and `2 + m` of the diffusion; two for one Brownian motion.

    Source: J. Foster, Numerical approximations for stochastic differential equations, thesis, Oxford 2020.
    """

    order: ClassVar[int] = 1
    strong: ClassVar[Mapping[Structure, float]] = {"additive": 1.0, "commuting": 1.0, "general": 1.0}
    calculus: ClassVar[Calculus] = "stratonovich"
    kinds: ClassVar[tuple[NoiseKind, ...]] = ("diagonal", "general")
    area: ClassVar[bool] = True
    levy: ClassVar[bool] = True

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        f, g = sde.both(span.start, y)
        half, middle = driven(torch.addcmul(y, 0.5 * h, f), g, 0.5 * path.W), span.at(0.5)
        f, g = sde.both(middle, half)
        end = driven(torch.addcmul(y, h, f), g, path.W)
        if path.W.shape[1] == 1 or path.A is None:  # one path alone turns around nothing
            return end, None
        columns = _columns(g)
        for j, along in enumerate((columns @ path.A).unbind(2)):
            bent = _columns(sde.diffusion(middle, half + along))
            end = end + (bent[:, :, j] - columns[:, :, j])
        return end, None


def _columns(g: Tensor) -> Tensor:
    """A diffusion as matrices, `(B, n, m)`."""
    return torch.diag_embed(g) if g.dim() == 2 else g

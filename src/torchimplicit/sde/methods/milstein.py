"""Milstein's method without derivatives, for Ito equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import driven
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.solver import Calculus, SDESolver, root_of
from torchimplicit.sde.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Milstein(SDESolver, FixedSolver):
    r"""A step of Euler's with what the noise does to its own coefficient: strong order 1 where columns commute.

    To $y_k + h f + g \Delta W$ comes
    $\frac12 \sum_{ij} (g_i \cdot \nabla) g_j (\Delta W_i \Delta W_j - h \delta_{ij})$, with differences of $g$ over
    steps of size $\sqrt h$ in place of derivatives: nothing is asked of a Jacobian, whose transpose is easily taken
    for it. For general noise whose columns do not commute it has the order 1/2 of Euler's.

    For every noise, Ito. An evaluation of the drift a step and two of the diffusion; of a matrix `2 + m`.

    Source: P. E. Kloeden, E. Platen, Numerical Solution of Stochastic Differential Equations, 1992, section 11.1.
    """

    order: ClassVar[int] = 1
    strong: ClassVar[Mapping[Structure, float]] = {"additive": 1.0, "commuting": 1.0, "general": 0.5}
    calculus: ClassVar[Calculus] = "ito"

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        f, g = sde.both(span.start, y)
        w, root = path.W, root_of(span, h)
        end = driven(torch.addcmul(y, h, f), g, w)
        if g.dim() == 2:
            bent = sde.diffusion(span.start, torch.addcmul(y, root, g)) - g
            return torch.addcdiv(end, torch.addcmul(h, w, w, value=-1.0) * bent, root, value=-0.5), None
        end = driven(end, sde.diffusion(span.start, driven(y, g, w)) - g, w, 0.5)
        for j, column in enumerate(g.unbind(2)):
            bent = sde.diffusion(span.start, torch.addcmul(y, root, column))[:, :, j] - column
            end = torch.addcmul(end, -0.5 * root, bent)
        return end, None

"""Roessler's method SRID2 for diagonal and scalar noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import NoiseKind
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.solver import Calculus, SDESolver, root_of
from torchimplicit.sde.structure import Structure


@dataclass(frozen=True, kw_only=True)
class SRID2(SDESolver, FixedSolver):
    r"""Strong order 3/2 for diagonal and scalar noise, by the space-time area of the noise.

    For diagonal noise, $g_i$ depending on $y_i$ alone (else it is of order 1/2), and scalar noise, Ito. Three
    evaluations of the drift and four of the diffusion a step: what has no weight is not made, and nothing twice.

    Source: A. Roessler, SIAM J. Numer. Anal. 48 (2010) 922, table 6.2.
    """

    order: ClassVar[int] = 2
    strong: ClassVar[Mapping[Structure, float]] = {"commuting": 1.5, "general": 0.5}
    calculus: ClassVar[Calculus] = "ito"
    kinds: ClassVar[tuple[NoiseKind, ...]] = ("diagonal", "scalar")
    area: ClassVar[bool] = True

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        assert path.H is not None
        w, root, quarter = path.W, root_of(span, h), span.at(0.25)
        mean = torch.add(path.H, w, alpha=0.5)  # of the path over the step
        f0, g0 = sde.both(span.start, y)
        ahead = torch.addcmul(y, h, f0)
        f1 = sde.drift(span.stop, ahead)
        g1 = sde.diffusion(quarter, y + 0.25 * h * f0 - 0.5 * root * g0)
        g2 = sde.diffusion(span.stop, torch.addcmul(ahead, root, g0))
        f2 = sde.drift(span.at(0.5), y + 0.25 * h * (f0 + f1) + mean * (g0 + 0.5 * g1))
        g3 = sde.diffusion(quarter, y + 0.25 * h * f2 + root * (2 * g0 - g1 + 0.5 * g2))
        double = (w * w - h) / (2 * root)
        triple = w * (w * w - 3 * h) / (6 * torch.where(h > 0, h, 1.0))
        end = y + h * ((f0 + f1) / 6 + 2 / 3 * f2)
        end = torch.addcmul(end, g0, -w + double + 2 * mean - 2 * triple)
        end = torch.addcmul(end, g1, 4 / 3 * (w - double - mean) + 5 / 3 * triple)
        end = torch.addcmul(end, g2, 2 / 3 * (w - mean - triple) + double / 3)
        return torch.addcmul(end, g3, triple), None

"""Foster's shifted additive-noise Runge-Kutta method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import NoiseKind, driven, integral
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.solver import Calculus, SDESolver
from torchimplicit.sde.structure import Structure


@dataclass(frozen=True, kw_only=True)
class ShARK(SDESolver, FixedSolver):
    r"""Strong order 3/2 for additive noise: Ralston's method along a chord of the noise moved to the path's mean.

    For additive noise, of which Ito and Stratonovich equations are the same. Two evaluations of drift and diffusion a
    step.

    Source: J. Foster, G. dos Reis, C. Strange, SIAM J. Numer. Anal. 62 (2024) 2622.
    """

    order: ClassVar[int] = 2
    strong: ClassVar[Mapping[Structure, float]] = {"additive": 1.5}
    calculus: ClassVar[Calculus] = "ito"
    kinds: ClassVar[tuple[NoiseKind, ...]] = ("additive",)
    area: ClassVar[bool] = True

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        assert path.H is not None
        g, g_there = sde.diffusion(span.start, y), sde.diffusion(span.stop, y)
        moved = driven(y, g, path.H)
        f = sde.drift(span.start, moved)
        stage = driven(torch.addcmul(moved, 5 / 6 * h, f), g, 5 / 6 * path.W)
        slope = 0.4 * f + 0.6 * sde.drift(span.at(5 / 6), stage)
        mean = torch.add(path.H, path.W, alpha=0.5)
        return integral(torch.addcmul(y, h, slope), g, g_there, path.W, mean), None

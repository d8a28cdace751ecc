"""Roessler's method SRA1 for additive noise."""

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
class SRA1(SDESolver, FixedSolver):
    r"""Strong order 3/2 for additive noise, by two stages and the space-time area of the noise.

    For additive noise, of which Ito and Stratonovich equations are the same. Two evaluations of drift and diffusion a
    step. `ShARK` has a smaller error.

    Source: A. Roessler, SIAM J. Numer. Anal. 48 (2010) 922.
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
        mean = torch.add(path.H, path.W, alpha=0.5)  # of the path over the step
        f, g = sde.both(span.start, y)
        g_there = sde.diffusion(span.stop, y)
        stage = driven(torch.addcmul(y, 0.75 * h, f), g_there, 1.5 * mean)
        slope = (f + 2 * sde.drift(span.at(0.75), stage)) / 3
        return integral(torch.addcmul(y, h, slope), g, g_there, path.W, mean), None

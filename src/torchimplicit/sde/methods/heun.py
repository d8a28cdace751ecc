"""The method of Heun for Stratonovich equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import driven
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.solver import AdaptiveSDESolver, Calculus
from torchimplicit.sde.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Heun(AdaptiveSDESolver):
    r"""A step of Euler's with the fields here, and half of it with those at its end instead.

    With $z = y_k + h f(y_k) + g(y_k) \Delta W$ it is

    $$y_{k+1} = y_k + \frac h2 (f(y_k) + f(z)) + \frac12 (g(y_k) + g(z)) \Delta W.$$

    Strong order 1 for noise that commutes (diagonal, scalar, additive), 1/2 for general noise; weak order 1.

    For every noise, Stratonovich. Two evaluations of drift and diffusion a step. `Heun(dt=0.01)` has steps of a given
    size; without `dt` every sample chooses its own, by the distance $y_{k+1} - z$ from the step of Euler's.

    Source: W. Ruemelin, SIAM J. Numer. Anal. 19 (1982) 604.
    """

    order: ClassVar[int] = 1
    strong: ClassVar[Mapping[Structure, float]] = {"additive": 1.0, "commuting": 1.0, "general": 0.5}
    calculus: ClassVar[Calculus] = "stratonovich"
    reverses: ClassVar[bool] = True

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        f, g = sde.both(span.start, y)
        z = driven(torch.addcmul(y, h, f), g, path.W)
        f_there, g_there = sde.both(span.stop, z)
        end = driven(torch.addcmul(y, h, f + f_there, value=0.5), g + g_there, path.W, 0.5)
        return end, end - z if self.adapts else None

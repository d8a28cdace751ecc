"""The method of Heun for Stratonovich equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.path.solver import FixedSolver
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import driven
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.solver import Calculus, SDESolver


@dataclass(frozen=True, kw_only=True)
class Heun(SDESolver, FixedSolver):
    r"""A step of Euler's with the fields here, and half of it with those at its end instead.

    With $z = y_k + h f(y_k) + g(y_k) \Delta W$ it is
    $y_{k+1} = y_k + \frac h2 (f(y_k) + f(z)) + \frac12 (g(y_k) + g(z)) \Delta W$: strong order 1 for noise that
    commutes (diagonal, scalar, additive), 1/2 for general noise; weak order 1.

    For every noise, Stratonovich. Two evaluations of drift and diffusion a step.

    Source: W. Ruemelin, SIAM J. Numer. Anal. 19 (1982) 604.
    """

    order: ClassVar[int] = 1
    calculus: ClassVar[Calculus] = "stratonovich"

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        f, g = sde.both(span.start, y)
        z = driven(torch.addcmul(y, h, f), g, path.W)
        f_there, g_there = sde.both(span.stop, z)
        return driven(torch.addcmul(y, 0.5 * h, f + f_there), g + g_there, 0.5 * path.W), None

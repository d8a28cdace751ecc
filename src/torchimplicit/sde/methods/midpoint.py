"""The midpoint method for Stratonovich equations."""

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
from torchimplicit.sde.solver import Calculus, SDESolver
from torchimplicit.sde.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Midpoint(SDESolver, FixedSolver):
    r"""A step with the fields halfway, $y_{k+1} = y_k + h f(z) + g(z) \Delta W$.

    Halfway is $z = y_k + \frac12 (h f(y_k) + g(y_k) \Delta W)$.

    Strong order 1 for noise that commutes (diagonal, scalar, additive), 1/2 for general noise; weak order 1.

    For every noise, Stratonovich. Two evaluations of drift and diffusion a step.

    Source: G. N. Milstein, M. V. Tretyakov, Stochastic Numerics for Mathematical Physics, 2004.
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
        half = driven(torch.addcmul(y, 0.5 * h, f), g, 0.5 * path.W)
        f, g = sde.both(span.at(0.5), half)
        return driven(torch.addcmul(y, h, f), g, path.W), None

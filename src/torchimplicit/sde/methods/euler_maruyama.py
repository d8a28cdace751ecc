"""The method of Euler and Maruyama."""

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
class EulerMaruyama(SDESolver, FixedSolver):
    r"""$y_{k+1} = y_k + h f + g\,\Delta W$: strong order 1/2, weak order 1; strong order 1 for additive noise.

    For every noise, Ito. One evaluation of drift and diffusion a step.

    Source: G. Maruyama, Rend. Circ. Mat. Palermo 4 (1955) 48.
    """

    order: ClassVar[int] = 1
    strong: ClassVar[Mapping[Structure, float]] = {"additive": 1.0, "commuting": 0.5, "general": 0.5}
    calculus: ClassVar[Calculus] = "ito"

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """See `SDESolver.advance`."""
        f, g = sde.both(span.start, y)
        return driven(torch.addcmul(y, h, f), g, path.W), None

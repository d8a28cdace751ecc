"""The base of the methods of stochastic paths: a formula for a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import EndOnly
from torchimplicit.path.solver import PathSolver, Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import NoiseKind
from torchimplicit.sde.dynamics import NoisyField

Calculus = Literal["ito", "stratonovich"]
EVERY: tuple[NoiseKind, ...] = ("diagonal", "scalar", "additive", "general")


@dataclass(frozen=True, kw_only=True)
class SDESolver(PathSolver):
    """Base of the methods of stochastic paths.

    A subclass is a formula, `advance`, of drift, diffusion and the increment of the noise; and says which calculus its
    limit is of, and for which noise. Mix in `FixedSolver` for steps of a given size.

    Attributes:
        calculus: of the process that it converges to.
        kinds: the noise that it is for.
        area: whether it asks for the space-time area of the noise.
    """

    stops_at_outputs: ClassVar[bool] = True  # between its ends the path of a step is not known
    calculus: ClassVar[Calculus]
    kinds: ClassVar[tuple[NoiseKind, ...]] = EVERY
    area: ClassVar[bool] = False

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """The states at the end of a step, and an estimate of their error; None for a method without one.

        Args:
            sde: drift and diffusion, at any times `(B,)` and states `(B, n)`.
            span: of the step.
            h: its length in the state's dtype, `(B, 1)`.
            y: the states at its start, `(B, n)`.
            path: the noise over it.
        """
        raise NotImplementedError

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""

        def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            if not isinstance(field, NoisyField):
                raise TypeError(f"solver: got {self!r} for a path without noise, expected sdeint; try ti.Tsit5()")
            h = (span.h if span.h.dtype is y.dtype else span.h.to(y.dtype)).unsqueeze(1)
            end, error = self.advance(field, span, h, y, field.increment(span, y))
            return Stepped(end, error, None, EndOnly(end))

        return step


def root_of(h: Tensor) -> Tensor:
    """The root of lengths of steps, to divide by; 1 for samples that stand still, whose step nobody looks at."""
    return torch.where(h > 0, h, 1.0).sqrt()

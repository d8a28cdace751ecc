"""The base of the methods of stochastic paths: a formula for a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.pair import made_reversible
from torchimplicit.path.solver import AdaptiveSolver, PathSolver, Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import PID, Fixed, require_dt
from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import NoiseKind
from torchimplicit.sde.dynamics import NoisyField
from torchimplicit.sde.girsanov import with_integral
from torchimplicit.sde.inside import Inside
from torchimplicit.sde.paired import PairedSDE
from torchimplicit.sde.structure import Structure

Calculus = Literal["ito", "stratonovich"]
EVERY: tuple[NoiseKind, ...] = ("diagonal", "scalar", "additive", "general")


@dataclass(frozen=True, kw_only=True)
class SDESolver(PathSolver):
    """Base of the methods of stochastic paths.

    A subclass is a formula, `advance`, of drift, diffusion and the increment of the noise; and says which calculus its
    limit is of, and for which noise. Mix in `FixedSolver` for steps of a given size.

    Attributes:
        calculus: of the process that it converges to.
        strong: its strong order for noise of every structure, see `StochasticReport.structure`.
        kinds: the noise that it is for.
        area: whether it asks for the space-time area of the noise.
        levy: whether it asks for its Levy areas; these the noise has at steps of its `base` and longer ones alone.
        reverses: whether its steps backward along the noise are of the same process, so that it can be paired.
    """

    stops_at_outputs: ClassVar[bool] = True  # between its ends a path is not smooth
    knows_inside: ClassVar[bool] = True
    calculus: ClassVar[Calculus]
    strong: ClassVar[Mapping[Structure, float]] = {}  # a method that states none: reports say None
    kinds: ClassVar[tuple[NoiseKind, ...]] = EVERY
    area: ClassVar[bool] = False
    levy: ClassVar[bool] = False
    reverses: ClassVar[bool] = False

    def advance(
        self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment
    ) -> tuple[Tensor, Tensor | None]:
        """The states at the end of a step, and an estimate of their error; None for a method without one.

        Args:
            sde: drift and diffusion, at any times `(B,)` and states `(B, n)`.
            span: of the step.
            h: its length in the state's dtype, `(B, 1)`, or `(1, 1)` where it is that of all.
            y: the states at its start, `(B, n)`.
            path: the noise over it.
        """
        raise NotImplementedError

    def made(self, sde: NoisyField, span: Span, h: Tensor, y: Tensor, path: Increment) -> tuple[Tensor, Tensor | None]:
        """What `advance` finds, with the noise's part of a divergence where that is wanted."""
        end, error = self.advance(sde, span, h, y, path)
        return end if sde.control is None else with_integral(end, sde.control(span.start, y), path), error

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""

        def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            if not isinstance(field, NoisyField):
                raise TypeError(f"solver: got {self!r} for a path without noise, expected sdeint; try ti.Tsit5()")
            h = (span.h if span.h.dtype is y.dtype else span.h.to(y.dtype)).unsqueeze(1)
            path = field.increment(span, y)
            end, error = self.made(field, span, h, y, path)
            return Stepped(end, error, None, Inside(self.made, field, span, y, path, end))

        return step

    def paired(self, name: str, like: Tensor, coupling: float) -> PathSolver:
        """See `PathSolver.paired`."""
        solver = type(self).__name__
        if not self.reverses:
            raise ValueError(
                f"{name}(solver={solver}(...), adjoint=Reversible()): expected a method that leads back along the "
                "noise; try ti.sde.ReversibleHeun(dt=...), Heun(dt=...) or Midpoint(dt=...), or adjoint=Checkpointed()"
            )
        if self.adapts:
            raise ValueError(
                f"{name}(solver={solver}(...), adjoint=Reversible()): got steps that are chosen, whose noise would "
                f"have to be kept, expected steps of a given size; try {solver}(dt=...), or adjoint=Checkpointed()"
            )
        return made_reversible(PairedSDE, self, coupling)


@dataclass(frozen=True, kw_only=True)
class AdaptiveSDESolver(SDESolver, AdaptiveSolver):
    """Base of the methods that estimate their error: every sample chooses its steps by it, or `dt` says them.

    What a rejected step has drawn of the noise is kept and divided, see `Stack`. The estimate is of one step; what it
    leads to at the end of the path is for you to find out, by another tolerance.

    Args:
        rtol: see `AdaptiveSolver`.
        atol: see `AdaptiveSolver`.
        dt0: see `AdaptiveSolver`.
        dt_min: see `AdaptiveSolver`.
        control: see `AdaptiveSolver`; errors of steps with noise waver, so that this one has a memory.
        max_steps: see `PathSolver`.
        dt: size of the steps, the last one before an output being shorter where it does not fit; None chooses them.
    """

    rtol: float | Tensor = 1e-2
    atol: float | Tensor = 1e-3
    control: PID | Fixed = PID(proportional=0.4, integral=0.3, largest=5.0)
    dt: float | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_dt(self)
        once = self.dt is None or isinstance(self.control, PID)
        require(self, "dt", once, "no dt beside control=Fixed(...), which says it already")

    @property
    def adapts(self) -> bool:
        """See `PathSolver.adapts`."""
        return self.dt is None and super().adapts

    @property
    def dt_given(self) -> float | None:
        """See `PathSolver.dt_given`."""
        return super().dt_given if self.dt is None else self.dt


def root_of(span: Span, h: Tensor) -> Tensor:
    """The root of lengths of steps, to divide by; not zero for samples that stand still, whose step nobody looks at."""
    return h.clamp_min(torch.finfo(h.dtype).tiny).sqrt() if span.root is None else span.root

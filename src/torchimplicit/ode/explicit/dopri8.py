"""Dormand and Prince's method of order 8: two error estimates, and an interpolant that costs three evaluations more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.ode.explicit.dopri8_tableau import DOPRI8, DOPRI8_INSIDE, THIRD
from torchimplicit.ode.explicit.step import Stages, explicit_step, stages_of
from torchimplicit.ode.explicit.tableau import combine, weights
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import PolynomialInterpolant
from torchimplicit.path.solver import AdaptiveSolver, Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import Tolerance

CRUDE = tuple(weight - third for weight, third in zip(DOPRI8.b, THIRD, strict=True))  # an estimate of order 3


@dataclass(frozen=True, kw_only=True)
class Dopri8(AdaptiveSolver):
    r"""Dormand and Prince's method, order 8(5,3): twelve evaluations a step, for smooth fields and tight tolerances.

    On Lotka and Volterra's field it takes about as many evaluations as `Tsit5` for an error of 5e-8 and little more
    than half as many for 3e-10, which asks for float64. The error of a step is
    $|e_5|^2 / \sqrt{|e_5|^2 + 0.01 |e_3|^2}$ from estimates of order 5 and 3. A step that an output, an event or dense
    output falls into costs three evaluations more, for an interpolant of order 7. Not for stiff fields, nor for loose
    tolerances, where `Tsit5` costs less.

    Source: E. Hairer, S. Norsett, G. Wanner, Solving Ordinary Differential Equations I (1993), II.5, II.6 and II.10
    (the program DOP853).
    """

    order: ClassVar[int] = 8

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        stages = stages_of(DOPRI8, like, graph, also=(CRUDE,))
        tolerance = Tolerance(self.rtol, self.atol, like)
        matrix = weights(DOPRI8_INSIDE, like.dtype, like.device).interpolant
        assert matrix is not None

        def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            into = stages()
            done = explicit_step(DOPRI8, field, span, y, slope, into)
            h_state = span.h.to(y.dtype).unsqueeze(1)
            inside = PolynomialInterpolant(matrix, LateStages(into, field, span, h_state, y), h_state, y, done.y)
            cruder = into.error(1)
            if done.error is None or cruder is None:
                return done._replace(inside=inside)
            fifth, crude = tolerance.ratio(done.error, y, done.y), tolerance.ratio(cruder, y, done.y)
            tiny = torch.finfo(y.dtype).tiny
            share = fifth / torch.hypot(fifth, 0.1 * crude).clamp_min(tiny)
            return done._replace(error=done.error * share.unsqueeze(1), inside=inside)

        return step


class LateStages:
    """The increments of a step and of three more stages, which are evaluated once somebody looks.

    Args:
        stages: the increments of the step.
        field: the vector field.
        span: of the step.
        h: its size in the state's dtype, `(B, 1)`.
        y: the state at its start, `(B, n)`.
    """

    def __init__(self, stages: Stages, field: Field, span: Span, h: Tensor, y: Tensor):
        self.stages, self.field, self.span, self.h, self.y = stages, field, span, h, y
        self.rows: Tensor | None = None

    def of(self, samples: Tensor) -> Tensor:
        """See `Increments.of`."""
        if self.rows is None:
            self.rows = self._complete()
        return self.rows[:, samples]

    def _complete(self) -> Tensor:
        known = weights(DOPRI8_INSIDE, self.y.dtype, self.y.device)
        rows = self.stages.of(torch.arange(len(self.y), device=self.y.device))
        for i in range(DOPRI8.stages, DOPRI8_INSIDE.stages):
            state = combine(self.y, DOPRI8_INSIDE.a[i], rows.unbind())
            slope = self.field(self.span.at(known.c[i].to(self.span.h.dtype)), state)
            rows = torch.cat((rows, (slope * self.h).unsqueeze(0)))
        return rows

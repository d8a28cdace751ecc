"""One step of a diagonally implicit Runge-Kutta method, alone or paired with an explicit one."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.ode.explicit.step import interpolant
from torchimplicit.ode.explicit.tableau import combine, weights
from torchimplicit.ode.implicit.newton import (
    Equation,
    Factors,
    FieldFunction,
    JacobianCache,
    differentiable_stage,
    jacobian,
)
from torchimplicit.ode.implicit.tableau import StiffTableau, predictor
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import Rows
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


def implicit_step(
    tableau: StiffTableau,
    field: Field,
    span: Span,
    y: Tensor,
    slope: Tensor | None,
    cache: JacobianCache,
    derivatives: int | None,
) -> Stepped:
    """One step.

    Args:
        tableau: the method.
        field: the vector field; with its parts for an additive pair.
        span: from when to when.
        y: states, `(B, n)`.
        slope: the slope there, if it is known.
        cache: of the Jacobians.
        derivatives: how many orders of derivatives shall be exact; None for a step without a graph.
    """
    known = weights(tableau, y.dtype, y.device)
    t, times = span.start, span.at(known.c.to(span.h.dtype).unsqueeze(1)).unbind()
    h_state = span.h.to(y.dtype).unsqueeze(1)
    quick: FieldFunction | None = None
    stiff: FieldFunction = field
    if tableau.explicit:
        quick, stiff = field.parts
    fast = [] if quick is None else [h_state * quick(t, y)]
    slow = [h_state * (slope if slope is not None and quick is None else stiff(t, y))]
    solver = cache if derivatives is None else _DifferentiableStages(cache, derivatives)
    solver.begin(stiff, t, span.h, y)
    guesses, end = predictor(tableau), y
    for i in range(1, tableau.stages):
        base = combine(y, tableau.a[i], slow)
        base = base if quick is None else combine(base, tableau.explicit[i], fast)
        guess = tableau.gamma * combine(torch.zeros_like(y), guesses[i], slow)
        w = solver.solve(times[i], base, guess)
        slow.append(w / tableau.gamma)
        end = base + w
        if quick is not None:
            fast.append(h_state * quick(times[i], end))
    rows = slow if quick is None else [a + b for a, b in zip(slow, fast, strict=True)]
    end = end if tableau.stiffly_accurate else combine(y, tableau.b, rows)
    error = failed = None
    if derivatives is None:
        end, error = cache.judge(end, combine(torch.zeros_like(y), tableau.e or (), rows), tableau.damps)
        failed = cache.failed
    last = None
    if tableau.stiffly_accurate:  # a slope of zero where nothing moves: nobody looks at it
        last = rows[-1] / torch.where(h_state == 0, 1.0, h_state)
    inside = interpolant(known, Rows(rows), rows[0], field, span, h_state, y, end, last)
    return Stepped(end, error, last, inside, failed)


class _DifferentiableStages:
    """Solves a step's stages with their graph."""

    def __init__(self, cache: JacobianCache, derivatives: int):
        self.cache, self.derivatives = cache, derivatives

    def begin(self, field: FieldFunction, t: Tensor, h: Tensor, y: Tensor) -> None:
        """See `JacobianCache.begin`."""
        self.field, self.g = field, (self.cache.gamma * h).to(y.dtype).unsqueeze(1)
        jac = jacobian(field, t.detach(), y)
        self.scale = self.cache.strict_scale(y.detach())
        self.factors = Factors(jac, self.g.detach())

    def solve(self, t: Tensor, base: Tensor, guess: Tensor) -> Tensor:
        """See `JacobianCache.solve`."""
        return differentiable_stage(
            Equation(self.field, t, self.g, base, self.scale), guess, self.factors, self.derivatives
        )

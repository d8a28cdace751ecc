"""Any explicit method that a tableau describes, made reversible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from torchimplicit.ode.explicit.step import explicit_step, stages_of
from torchimplicit.ode.explicit.tableau import Tableau
from torchimplicit.path.adjoint.drift import looser
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import EndOnly
from torchimplicit.path.pair import Increments, Paired
from torchimplicit.path.solver import Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


@dataclass(frozen=True, kw_only=True)
class PairedRK(Paired):
    """A Runge-Kutta method made reversible; see `Paired`."""

    tableau: ClassVar[Tableau]

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        plain = _increments(without_last(self.tableau), like, graph)
        first = plain if graph else _increments(self.tableau, like, graph)  # which estimates the error

        def step(field: Field, span: Span, pair: Tensor, _: Tensor | None) -> Stepped:
            there, error = first(field, span, pair.chunk(2, dim=1)[1])
            end = self.coupled(span.h.unsqueeze(1), pair, there, lambda y: plain(field, span.back(), y)[0])
            return Stepped(end, None if error is None else torch.cat((error, error), dim=1), None, EndOnly(end))

        return step

    def increments(self, like: Tensor) -> Increments:
        """See `Paired.increments`."""
        plain = _increments(without_last(self.tableau), like.repeat(1, 2), graph=True)
        return lambda field, span, y, backward: plain(field, span.back() if backward else span, y)[0]

    def apart(self, field: Field, ts: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See `PairSolver.apart`: over the tolerance of the steps."""
        rtol, atol = looser(self, self, y[0])
        size = torch.maximum(y.abs(), z.abs()).amax(0)  # of every unknown, which may be zero at an output
        return ((y - z) / (atol + rtol * size)).square().mean(2).sqrt().amax(0)


@lru_cache
def without_last(tableau: Tableau) -> Tableau:
    """The same method without an error estimate, and without a last stage that only the next step has a use for."""
    stages = tableau.stages - tableau.first_same_as_last
    return Tableau(tableau.c[:stages], tableau.a[:stages], tableau.b[:stages])


def _increments(tableau: Tableau, like: Tensor, graph: bool) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What a step adds to states `(B, n)`, and the estimate of its error; `like` is a pair."""
    stages = stages_of(tableau, like.chunk(2, dim=1)[0], graph)

    def increment(field: Field, span: Span, y: Tensor) -> tuple[Tensor, Tensor | None]:
        done = explicit_step(tableau, field, span, y, None, stages())
        return done.y - y, done.error

    return increment

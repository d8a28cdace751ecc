"""Path solvers as data: which method, to which accuracy, in how many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchimplicit.ode.explicit import tableau as tableaus
from torchimplicit.ode.explicit.step import explicit_step, stages_of
from torchimplicit.ode.explicit.tableau import Tableau
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.solver import AdaptiveSolver, FixedSolver, PathSolver, Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


class ExplicitRK(PathSolver):
    """Base of the explicit Runge-Kutta methods, with `FixedSolver` or `AdaptiveSolver` beside it.

    A subclass states its `tableau` and its `order`; `testing.check_path_solver` measures whether they agree.
    """

    tableau: ClassVar[Tableau]

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        stages = stages_of(self.tableau, like, graph)

        def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            return explicit_step(self.tableau, field, span, y, slope, stages())

        return step


@dataclass(frozen=True, kw_only=True)
class Euler(ExplicitRK, FixedSolver):
    """Euler's method, order 1. With `dt=None` and unit output times it is a residual network."""

    order: ClassVar[int] = 1
    tableau: ClassVar[Tableau] = tableaus.EULER


@dataclass(frozen=True, kw_only=True)
class Midpoint(ExplicitRK, FixedSolver):
    """The explicit midpoint rule, order 2: two evaluations a step."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = tableaus.MIDPOINT


@dataclass(frozen=True, kw_only=True)
class RK4(ExplicitRK, FixedSolver):
    """The classical method of order 4: four evaluations a step."""

    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = tableaus.RK4


@dataclass(frozen=True, kw_only=True)
class Heun(ExplicitRK, AdaptiveSolver):
    """Heun's method with Euler's as its estimate, order 2(1): for tolerances of 1e-2 and looser."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = tableaus.HEUN


@dataclass(frozen=True, kw_only=True)
class Bosh3(ExplicitRK, AdaptiveSolver):
    """Bogacki and Shampine's method, order 3(2): three evaluations a step, for loose tolerances."""

    order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = tableaus.BOSH3


@dataclass(frozen=True, kw_only=True)
class Dopri5(ExplicitRK, AdaptiveSolver):
    """Dormand and Prince's method, order 5(4): six evaluations a step; most results of the field were made with it."""

    order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = tableaus.DOPRI5


@dataclass(frozen=True, kw_only=True)
class Tsit5(ExplicitRK, AdaptiveSolver):
    """Tsitouras' method, order 5(4): six evaluations a step, the default.

    Not for stiff fields: there its steps are limited by stability and not by accuracy, and `max_steps` ends the solve.
    """

    order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = tableaus.TSIT5

"""Solvers for stiff fields, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.ode.implicit import tableau as tableaus
from torchimplicit.ode.implicit.newton import JacobianCache
from torchimplicit.ode.implicit.step import implicit_step
from torchimplicit.ode.implicit.tableau import StiffTableau
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.solver import AdaptiveSolver, Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import Tolerance


@dataclass(frozen=True, kw_only=True)
class StiffSolver(AdaptiveSolver):
    """Base of the solvers for stiff fields: each stage of a step is an equation that Newton steps solve.

    Every sample has a Jacobian of its own, `(B, n, n)`, built from `n` vector-Jacobian products and kept over stages
    and steps while it serves: for states of at most a few hundred unknowns a sample. A sample whose equations are not
    solved rejects its step and tries a smaller one.

    In the backward pass a stage is made again to rounding and attached by Newton steps with a graph, so that gradients
    are those of the exact solution of the stage equations; forward, stages are solved to `stage_tol`.

    Where a path jumps, gradients want a tighter tolerance than values do: they are far larger within the jump than
    behind it, and so are their errors, for which no step is chosen. On van der Pol's field with mu = 1000 they shrink
    two million times: `ESDIRK54` gave the gradient by the start to 6e-6 before a jump, at `rtol=1e-6` and `atol=1e-8`,
    and behind it with an error of 70 %; 0.4 % with tolerances 100 times as tight.

    Args:
        stage_tol: error of a stage over the tolerance of the step, in (0, 1).
        newton_steps: Newton steps a stage at most; more make the step be rejected.
        derivatives: up to which order derivatives are exact, at an evaluation a stage and order; those beyond are
            wrong. 1 suffices for `backward()`.
        rtol: see `AdaptiveSolver`.
        atol: see `AdaptiveSolver`.
        dt0: see `AdaptiveSolver`.
        dt_min: see `AdaptiveSolver`.
        control: see `AdaptiveSolver`.
        max_steps: see `PathSolver`.
    """

    remembers: ClassVar[bool] = True
    tableau: ClassVar[StiffTableau]

    stage_tol: float = 1e-3
    newton_steps: int = 10
    derivatives: int = 2

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "stage_tol", is_number(self.stage_tol) and 0 < self.stage_tol < 1, "a number in (0, 1)")
        require_count(self, "newton_steps", least=2)
        require_count(self, "derivatives")

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        cache = JacobianCache(
            self.tableau.gamma, Tolerance(self.rtol, self.atol, like), self.stage_tol, self.newton_steps
        )
        derivatives = self.derivatives if graph else None

        def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            return implicit_step(self.tableau, field, span, y, slope, cache, derivatives)

        return step


@dataclass(frozen=True, kw_only=True)
class Kvaerno3(StiffSolver):
    """Kvaerno's method, order 3(2), L-stable: three equations a step, for stiff fields and loose tolerances.

    Robertson's problem, to t = 40, takes it 59 steps at `rtol=1e-4` and 236 at 1e-6; `ESDIRK54` takes 17 and 33, with
    a third and a half of the error.

    Source: A. Kvaerno, BIT Numer. Math. 44 (2004) 489.
    """

    order: ClassVar[int] = 3
    tableau: ClassVar[StiffTableau] = tableaus.KVAERNO3


@dataclass(frozen=True, kw_only=True)
class ESDIRK54(StiffSolver):
    """Kennedy and Carpenter's method ESDIRK5(4)7L[2]SA2, L-stable: six equations a step. The first choice when stiff.

    Not for fields that are not stiff: on Lotka and Volterra's, `Tsit5` takes a third of its evaluations and none of its
    linear algebra. The estimate of a step's error is damped as the method is, by one more linear solve.

    Source: C. Kennedy, M. Carpenter, Appl. Numer. Math. 146 (2019) 221.
    """

    order: ClassVar[int] = 5
    tableau: ClassVar[StiffTableau] = tableaus.ESDIRK54


@dataclass(frozen=True, kw_only=True)
class KenCarp4(StiffSolver):
    """Kennedy and Carpenter's additive pair ARK4(3)6L[2]SA, order 4(3), for a `Split` field.

    The explicit part is stepped explicitly, the implicit part by an L-stable method: five equations a step, whose
    Jacobian is that of the implicit part alone. For diffusion or relaxation that is stiff beside a complicated part
    that is not. The step is limited by the stability of the explicit part.

    Source: C. Kennedy, M. Carpenter, Appl. Numer. Math. 44 (2003) 139.
    """

    order: ClassVar[int] = 4
    tableau: ClassVar[StiffTableau] = tableaus.KENCARP4

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        step = super().stepper(like, graph)

        def checked(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            if not field.parts:
                raise TypeError(
                    "KenCarp4: got a field in one part, expected ti.Split(explicit, implicit); for a field that is "
                    "stiff as a whole try ESDIRK54()"
                )
            return step(field, span, y, slope)

        return checked

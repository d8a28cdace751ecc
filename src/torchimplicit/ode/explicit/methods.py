"""Path solvers as data: which method, to which accuracy, in how many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchimplicit.ode.explicit.kept import keeping
from torchimplicit.ode.explicit.paired import PairedRK
from torchimplicit.ode.explicit.step import explicit_step, stages_of
from torchimplicit.ode.explicit.tableau import Row, Tableau
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.graphs import Graphs
from torchimplicit.path.pair import for_pairs, made_reversible
from torchimplicit.path.solver import AdaptiveSolver, FixedSolver, PathSolver, Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


class ExplicitRK(PathSolver):
    """Base of the explicit Runge-Kutta methods, with `FixedSolver` or `AdaptiveSolver` beside it.

    A subclass states its `tableau` and its `order`; `testing.check_path_solver` measures whether they agree.
    """

    alone: ClassVar[bool] = True
    tableau: ClassVar[Tableau]

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        stages = stages_of(self.tableau, like, graph)

        def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
            return explicit_step(self.tableau, field, span, y, slope, stages())

        return step

    @property
    def keeps(self) -> bool:
        """See `PathSolver.keeps`."""
        return type(self).stepper is ExplicitRK.stepper and self.tableau.interpolant is not None

    def keeper(self, like: Tensor, graphs: Graphs) -> Stepper:
        """See `PathSolver.keeper`."""
        return keeping(self.tableau, like, graphs)

    def paired(self, name: str, like: Tensor, coupling: float) -> PathSolver:
        """See `PathSolver.paired`."""
        if type(self.tableau) is not Tableau:  # it takes more than a tableau to describe others
            return super().paired(name, like, coupling)
        return made_reversible(PairedRK, for_pairs(self, like), coupling)


@dataclass(frozen=True, kw_only=True)
class Euler(ExplicitRK, FixedSolver):
    """Euler's method, order 1. With `dt=None` and unit output times it is a residual network."""

    order: ClassVar[int] = 1
    tableau: ClassVar[Tableau] = Tableau(c=(0.0,), a=((),), b=(1.0,), interpolant=((1.0,),))


@dataclass(frozen=True, kw_only=True)
class Midpoint(ExplicitRK, FixedSolver):
    """The explicit midpoint rule, order 2: two evaluations a step."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau(
        c=(0.0, 0.5), a=((), (0.5,)), b=(0.0, 1.0), interpolant=((1.0, -1.0), (0.0, 1.0))
    )


@dataclass(frozen=True, kw_only=True)
class RK4(ExplicitRK, FixedSolver):
    """The classical method of order 4: four evaluations a step."""

    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = Tableau(
        c=(0.0, 0.5, 0.5, 1.0),
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )


@dataclass(frozen=True, kw_only=True)
class Heun(ExplicitRK, AdaptiveSolver):
    """Heun's method with Euler's as its estimate, order 2(1): for tolerances of 1e-2 and looser."""

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau(
        c=(0.0, 1.0),
        a=((), (1.0,)),
        b=(0.5, 0.5),
        e=(-0.5, 0.5),
        interpolant=((1.0, -0.5), (0.0, 0.5)),
    )


@dataclass(frozen=True, kw_only=True)
class Bosh3(ExplicitRK, AdaptiveSolver):
    """Bogacki and Shampine's method, order 3(2): three evaluations a step, for loose tolerances."""

    order: ClassVar[int] = 3
    # P. Bogacki, L. Shampine, Appl. Math. Lett. 2 (1989) 321.
    tableau: ClassVar[Tableau] = Tableau(
        c=(0.0, 1 / 2, 3 / 4, 1.0),
        a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=(2 / 9, 1 / 3, 4 / 9, 0.0),
        e=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
        interpolant=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    )


@dataclass(frozen=True, kw_only=True)
class Dopri5(ExplicitRK, AdaptiveSolver):
    """Dormand and Prince's method, order 5(4): six evaluations a step; most results of the field were made with it."""

    order: ClassVar[int] = 5
    # J. Dormand, P. Prince, J. Comput. Appl. Math. 6 (1980) 19; interpolant: L. Shampine, Math. Comp. 46 (1986) 135.
    tableau: ClassVar[Tableau] = Tableau(
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        e=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        interpolant=(
            (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0.0, 0.0, 0.0, 0.0),
            (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
            (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
            (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
    )


def _quartic(scale: float, constant: float, linear: float, quadratic: float) -> Row:
    """Coefficients of `scale * theta**2 * (constant + linear * theta + quadratic * theta**2)`."""
    return (0.0, scale * constant, scale * linear, scale * quadratic)


_P, _Q, _R = -1.3299890189751412, -1.4364028541716351, 0.7139816917074209
_S = -1.0530884977290216


@dataclass(frozen=True, kw_only=True)
class Tsit5(ExplicitRK, AdaptiveSolver):
    """Tsitouras' method, order 5(4): six evaluations a step, the default.

    Not for stiff fields: there its steps are limited by stability and not by accuracy, and `max_steps` ends the solve.
    """

    order: ClassVar[int] = 5
    # Ch. Tsitouras, Comput. Math. Appl. 62 (2011) 770: the method, table 1, and its quartic interpolant.
    tableau: ClassVar[Tableau] = Tableau(
        c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
            (
                0.09646076681806523,
                0.01,
                0.4798896504144996,
                1.379008574103742,
                -3.290069515436081,
                2.324710524099774,
            ),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0.0,
        ),
        e=(
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        interpolant=(
            (_S * _P * _R, _S * (_R + _P * _Q), _S * (_Q + _P), _S),
            _quartic(0.1017, 1.2949852507374631, -2.1966568338249754, 1.0),
            _quartic(2.490627285651252793, 1.57803468208092486, -2.38535645472061657, 1.0),
            _quartic(-16.54810288924490272, 1.21712927295533244 * 0.61620406037800089, -1.83333333333333333, 1.0),
            _quartic(47.37952196281928122, 1.203071208372362603 * 0.658047292653547382, -1.861118501025909985, 1.0),
            _quartic(-34.87065786149660974, 0.8, -1.866666666666666667, 1.0),
            _quartic(2.5, 0.6, -1.6, 1.0),
        ),
    )

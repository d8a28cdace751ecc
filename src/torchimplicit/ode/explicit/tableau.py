"""Runge-Kutta methods as data: a tableau and its interpolant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    r"""The coefficients of an explicit Runge-Kutta method.

    With $k_i = f(t + c_i h, y + h \sum_{j<i} a_{ij} k_j)$ the step is $y + h \sum_i b_i k_i$, its error estimate
    $h \sum_i e_i k_i$, and the path inside the step $y + h \sum_i k_i \sum_d P_{id} \theta^{d+1}$.

    Attributes:
        c: nodes.
        a: rows of the matrix, the first of them empty.
        b: weights.
        e: weights of the error estimate; None for a method with fixed steps.
        interpolant: `P`, a row per stage; None for the cubic through both ends (Hermite).

    Raises:
        ValueError: the coefficients are no method's: says which row of them.
    """

    c: Row
    a: tuple[Row, ...]
    b: Row
    e: Row | None = None
    interpolant: tuple[Row, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be right for any field, such as weights that do not add up to 1."""
        stages, P = len(self.c), self.interpolant
        _agree("as many rows of a as nodes c", len(self.a), stages)
        for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)):
            _agree(f"in row {i} of a, one number for each stage before it", len(row), i)
            _agree(f"row {i} of a, to add up to its node c[{i}]", sum(row) + self.diagonal(i), node)
        _agree("as many weights b as nodes c", len(self.b), stages)
        _agree("the weights b, to add up to 1", sum(self.b), 1.0)
        if self.e is not None:
            _agree("as many weights e of the error estimate as nodes c", len(self.e), stages)
            _agree("the weights e of the error estimate, to add up to 0", sum(self.e), 0.0)
        if P is not None:
            _agree("as many rows of the interpolant as nodes c", len(P), stages)
            for i, (row, weight) in enumerate(zip(P, self.b, strict=True)):
                _agree(f"row {i} of the interpolant, to add up to b[{i}], where the step ends", sum(row), weight)

    def diagonal(self, stage: int) -> float:
        """What of its own slope a stage looks at: nothing, in an explicit method."""
        return 0.0

    @property
    def stages(self) -> int:
        """How many slopes a step needs."""
        return len(self.c)

    @cached_property
    def first_same_as_last(self) -> bool:
        """Whether the last slope is that at the end of the step, so that the next step need not evaluate it."""
        padded = self.a[-1] + (0.0,) * (len(self.b) - len(self.a[-1]))
        return self.c[-1] == 1.0 and padded == self.b and len(self.c) > 1


def _agree(what: str, got: float, expected: float) -> None:
    """Refuses a sum of coefficients, or a count of them, that is another; rounding of published decimals may be."""
    if not abs(got - expected) <= 1e-12 * max(1.0, abs(expected)):
        raise ValueError(f"Tableau: expected {what}: {expected}, got {got}")


class Weights(NamedTuple):
    """A tableau's coefficients as tensors: `a` row by row, `b`, `c`, `e` and the interpolant."""

    a: tuple[Tensor, ...]
    b: Tensor
    c: Tensor
    e: Tensor | None
    interpolant: Tensor | None


def combine(y: Tensor, row: Row, increments: Sequence[Tensor]) -> Tensor:
    """`y` and a weighted sum of increments, of like shapes: an operation for every weight that is not zero."""
    for weight, increment in zip(row, increments, strict=True):
        y = y if weight == 0.0 else torch.add(y, increment, alpha=weight)
    return y


@lru_cache(maxsize=64)
def weights(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> Weights:
    """The coefficients in a dtype, on a device."""

    def tensor(values: tuple) -> Tensor:
        made = torch.tensor(values, dtype=dtype, device=device)
        return transforms.unwrapped(made)  # kept for longer than the transform lasts that may surround this

    e = None if tableau.e is None else tensor(tableau.e)
    interpolant = None if tableau.interpolant is None else tensor(tableau.interpolant)
    return Weights(tuple(map(tensor, tableau.a)), tensor(tableau.b), tensor(tableau.c), e, interpolant)


EULER = Tableau(c=(0.0,), a=((),), b=(1.0,), interpolant=((1.0,),))

MIDPOINT = Tableau(
    c=(0.0, 0.5), a=((), (0.5,)), b=(0.0, 1.0), interpolant=((1.0, -1.0), (0.0, 1.0))
)  # the one quadratic of second order

HEUN = Tableau(
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(0.5, 0.5),
    e=(-0.5, 0.5),
    interpolant=((1.0, -0.5), (0.0, 0.5)),
)

RK4 = Tableau(
    c=(0.0, 0.5, 0.5, 1.0),
    a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)

# P. Bogacki, L. Shampine, Appl. Math. Lett. 2 (1989) 321.
BOSH3 = Tableau(
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    e=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    interpolant=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
)

# J. Dormand, P. Prince, J. Comput. Appl. Math. 6 (1980) 19; the interpolant of L. Shampine, Math. Comp. 46 (1986) 135.
DOPRI5 = Tableau(
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


# Ch. Tsitouras, Comput. Math. Appl. 62 (2011) 770: the method, table 1, and its quartic interpolant.
_P, _Q, _R = -1.3299890189751412, -1.4364028541716351, 0.7139816917074209
_S = -1.0530884977290216
TSIT5 = Tableau(
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

"""Diagonally implicit Runge-Kutta methods as data, alone and in pairs with an explicit one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from torchimplicit.ode.explicit.tableau import Row, Tableau


@dataclass(frozen=True)
class StiffTableau(Tableau):
    r"""The coefficients of a diagonally implicit method with an explicit first stage (ESDIRK).

    With stage states $z_i = y + h \sum_{j<i} a_{ij} k_j + h \gamma k_i$, $k_i = f(t + c_i h, z_i)$, but for the first,
    where $z_1 = y$. In an additive pair the explicit part of the field enters with a matrix of its own, and weights,
    nodes, error estimate and interpolant are common to both.

    Attributes:
        gamma: the diagonal, the same in every stage but the first.
        explicit: rows of the other matrix of a pair; empty for a method that is none.
        damps: whether to divide the error estimate by $I - h \gamma J$, for the embedded method keeps a part of the
            fastest components, in which the estimate would be far larger than the error: M. Hosea, L. Shampine, Appl.
            Numer. Math. 20 (1996) 21.
    """

    gamma: float = 0.0
    explicit: tuple[Row, ...] = ()
    damps: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be right for any field; the explicit half of a pair has the same nodes."""
        super().__post_init__()
        if self.explicit:
            Tableau(self.c, self.explicit, self.b)

    def diagonal(self, stage: int) -> float:
        """See `Tableau.diagonal`."""
        return self.gamma if stage else 0.0

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage is the end of the step."""
        return not self.explicit and self.b == (*self.a[-1], self.gamma)


@lru_cache(maxsize=16)
def predictor(tableau: StiffTableau) -> tuple[Row, ...]:
    """Weights that guess a stage's slope from those before it, by extrapolation of degree 2 at most; a row per stage.

    Of all such weights the smallest: slopes far off, as on the way onto a slow manifold, are not magnified.
    """
    rows: list[Row] = [()]
    for i in range(1, len(tableau.c)):
        degree = min(len(set(tableau.c[:i])) - 1, 2)
        conditions = _powers(tableau.c[:i], degree)
        wanted = _powers(tableau.c[i : i + 1], degree)
        rows.append(tuple(torch.linalg.lstsq(conditions, wanted, driver="gelsd").solution.flatten().tolist()))
    return tuple(rows)


def _powers(nodes: Row, degree: int) -> Tensor:
    return torch.stack([torch.tensor(nodes, dtype=torch.float64, device="cpu") ** k for k in range(degree + 1)])


def _square(rows: tuple[Row, ...], diagonal: float) -> Tensor:
    """The rows of a lower triangle as a matrix."""
    matrix = torch.zeros(len(rows), len(rows), dtype=torch.float64, device="cpu")
    for i, row in enumerate(rows):
        matrix[i, :i] = torch.tensor(row, dtype=torch.float64, device="cpu")
        matrix[i, i] = diagonal if i else 0.0
    return matrix


def _interpolant(c: Row, matrices: tuple[Tensor, ...], b: Row, order: int, last_slope: bool = False) -> tuple[Row, ...]:
    r"""The smallest weights $b_i(\theta) = \sum_d P_{id} \theta^{d+1}$ of an order, that end in `b`.

    The conditions of an order are linear in the weights: $\sum_i b_i(\theta) \phi_i = \theta^q / \gamma$ for every
    rooted tree with $q \le p$ nodes (E. Hairer, S. Norsett, G. Wanner, Solving ODEs I, II.6).

    Args:
        c: nodes.
        matrices: of the method; both of a pair.
        b: weights.
        order: 3 or 4.
        last_slope: whether the path shall also leave along the first slope and arrive along the last.
    """
    stages, node = len(c), torch.tensor(c, dtype=torch.float64, device="cpu")
    trees = [(torch.ones_like(node), 1, 1.0), (node, 2, 2.0), (node**2, 3, 3.0)]
    trees += [(A @ node, 3, 6.0) for A in matrices]
    if order == 4:
        trees += [(node**3, 4, 4.0)]
        trees += [(node * (A @ node), 4, 8.0) for A in matrices] + [(A @ node**2, 4, 12.0) for A in matrices]
        trees += [(A @ (other @ node), 4, 24.0) for A in matrices for other in matrices]
    rows, wanted = [], []
    eye = torch.eye(order, dtype=torch.float64, device="cpu")
    for tree, nodes, density in trees:
        rows += [torch.outer(tree, eye[d]).flatten() for d in range(order)]
        wanted += [float(d + 1 == nodes) / density for d in range(order)]
    ends = [(torch.ones(order, dtype=torch.float64, device="cpu"), b)]
    if last_slope:
        ends.append((eye[0], tuple(float(i == 0) for i in range(stages))))
        ends.append(
            (
                torch.arange(1.0, order + 1, dtype=torch.float64, device="cpu"),
                tuple(float(i == stages - 1) for i in range(stages)),
            )
        )
    for powers, values in ends:
        rows += [torch.outer(row, powers).flatten() for row in torch.eye(stages, dtype=torch.float64, device="cpu")]
        wanted += values
    system, right = torch.stack(rows), torch.tensor(wanted, dtype=torch.float64, device="cpu").unsqueeze(1)
    found = torch.linalg.lstsq(system, right, rcond=1e-10, driver="gelsd").solution
    assert float((system @ found - right).abs().max()) < 1e-10
    return tuple(map(tuple, found.view(stages, order).tolist()))


# A. Kvaerno, BIT 44 (2004) 489: L-stable, as is the embedded method, the step's last stage but one.
_G = 0.43586652150845899942  # root of 6 g^3 - 18 g^2 + 9 g - 1
_KVAERNO3 = (
    (),
    (_G,),
    ((-4 * _G**2 + 6 * _G - 1) / (4 * _G), (-2 * _G + 1) / (4 * _G)),
    ((6 * _G - 1) / (12 * _G), -1 / ((24 * _G - 12) * _G), (-6 * _G**2 + 6 * _G - 1) / (6 * _G - 3)),
)


def _embedded(b: Row, other: Row) -> Row:
    return tuple(x - z for x, z in zip(b, other, strict=True))


KVAERNO3 = StiffTableau(
    c=(0.0, 2 * _G, 1.0, 1.0),
    a=_KVAERNO3,
    b=(*_KVAERNO3[3], _G),
    e=_embedded((*_KVAERNO3[3], _G), (*_KVAERNO3[2], _G, 0.0)),
    gamma=_G,
)

# C. Kennedy, M. Carpenter, Appl. Numer. Math. 146 (2019) 221, table 11: ESDIRK5(4)7L[2]SA2, L-stable, of stage order 2.
# Unlike A. Kvaerno's method of order 5, whose third node is 1.23, it evaluates nothing outside of the step.
_G5 = 23 / 125
_ESDIRK54_C = (
    0.0,
    46 / 125,
    7121331996143 / 11335814405378,
    49 / 353,
    3706679970760 / 5295570149437,
    347 / 382,
    1.0,
)
_ESDIRK54_LATER = (  # of the rows from the third on; their first two weights are equal
    (),
    (-85517644447 / 5003708988389,),
    (1514767744496 / 9099671765375, 14283835447591 / 12247432691556),
    (-1790937573418 / 7393406387169, 10819093665085 / 7266595846747, 4109463131231 / 7386972500302),
    (
        2809310203510 / 10304234040467,
        1021729336898 / 2364210264653,
        870612361811 / 2470410392208,
        -1307970675534 / 8059683598661,
    ),
)
_ESDIRK54_EMBEDDED = (
    615023338567 / 3362626566945,
    3192122436311 / 6174152374399,
    6156034052041 / 14430468657929,
    -1011318518279 / 9693750372484,
    1914490192573 / 13754262428401,
)


def _with_sum(total: float, later: Row) -> Row:
    """Weights with two equal ones in front that make up the sum."""
    first = (total - math.fsum(later)) / 2
    return (first, first, *later)


_ESDIRK54 = (
    (),
    (_G5,),
    *(_with_sum(c - _G5, row) for c, row in zip(_ESDIRK54_C[2:], _ESDIRK54_LATER, strict=True)),
)
_ESDIRK54_B = (*_ESDIRK54[6], _G5)
ESDIRK54 = StiffTableau(
    c=_ESDIRK54_C,
    a=_ESDIRK54,
    b=_ESDIRK54_B,
    e=_embedded(_ESDIRK54_B, _with_sum(1.0, _ESDIRK54_EMBEDDED)),
    interpolant=_interpolant(_ESDIRK54_C, (_square(_ESDIRK54, _G5),), _ESDIRK54_B, order=4, last_slope=True),
    gamma=_G5,
    damps=True,
)

# C. Kennedy, M. Carpenter, Appl. Numer. Math. 44 (2003) 139: ARK4(3)6L[2]SA.
_KENCARP4_C = (0.0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1.0)
_KENCARP4_IMPLICIT = (
    (),
    (1 / 4,),
    (8611 / 62500, -1743 / 31250),
    (5012029 / 34652500, -654441 / 2922500, 174375 / 388108),
    (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912),
    (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211),
)
_KENCARP4_EXPLICIT = (
    (),
    (1 / 2,),
    (13861 / 62500, 6889 / 62500),
    (-116923316275 / 2393684061468, -2731218467317 / 15368042101831, 9408046702089 / 11113171139209),
    (
        -451086348788 / 2902428689909,
        -2682348792572 / 7519795681897,
        12662868775082 / 11960479115383,
        3355817975965 / 11060851509271,
    ),
    (
        647845179188 / 3216320057751,
        73281519250 / 8382639484533,
        552539513391 / 3454668386233,
        3354512671639 / 8306763924573,
        4040 / 17871,
    ),
)
_KENCARP4_B = (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211, 1 / 4)
_KENCARP4_EMBEDDED = (
    4586570599 / 29645900160,
    0.0,
    178811875 / 945068544,
    814220225 / 1159782912,
    -3700637 / 11593932,
    61727 / 225920,
)
KENCARP4 = StiffTableau(
    c=_KENCARP4_C,
    a=_KENCARP4_IMPLICIT,
    b=_KENCARP4_B,
    e=_embedded(_KENCARP4_B, _KENCARP4_EMBEDDED),
    interpolant=_interpolant(
        _KENCARP4_C, (_square(_KENCARP4_IMPLICIT, 1 / 4), _square(_KENCARP4_EXPLICIT, 0.0)), _KENCARP4_B, order=3
    ),
    gamma=1 / 4,
    explicit=_KENCARP4_EXPLICIT,
)

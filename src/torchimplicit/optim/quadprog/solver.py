"""The methods that `qp` can be told to use."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor

SMALL = 200  # sparse programs of no more unknowns are solved as dense ones, in a batch


@dataclass(frozen=True)
class InteriorPoint:
    """The package's own method: dense, a batch at a time, needs torch alone. Sparse matrices are made dense for it."""


@dataclass(frozen=True)
class Clarabel:
    """Clarabel (extra `optim`), one program at a time: sparse ones of up to some 100,000 unknowns, and hard dense ones.

    Its answer is where an active-set method begins, which is exact, is judged by the same conditions as
    `InteriorPoint`'s, and gives the derivative. (P. J. Goulart, Y. Chen, Clarabel: an interior-point solver for conic
    programs with quadratic objectives, arXiv:2405.12762.)
    """


def check_solver(solver: Any) -> None:
    """Refuses what is no solver.

    Raises:
        TypeError: it is none.
    """
    if isinstance(solver, InteriorPoint | Clarabel) or (isinstance(solver, str) and solver == "auto"):
        return
    raise TypeError(
        f"qp(solver={solver!r}): expected 'auto', or a value; try ti.optim.InteriorPoint() or ti.optim.Clarabel()"
    )


def stays_sparse(solver: Any, q: Any) -> bool:
    """Whether a program with sparse matrices is solved as it is."""
    return isinstance(solver, Clarabel) or (solver == "auto" and isinstance(q, Tensor) and q.shape[-1:] > (SMALL,))


def may_ask(solver: Any) -> bool:
    """Whether Clarabel may be asked about what `InteriorPoint` leaves without an answer."""
    return solver == "auto" and find_spec("clarabel") is not None and find_spec("scipy") is not None

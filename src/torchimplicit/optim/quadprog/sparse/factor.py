"""Sparse symmetric systems, factored by SuperLU (scipy): the one place where more than torch is needed for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OTHERWISE = ", or solver=ti.optim.InteriorPoint(), which makes them dense"
_SHIFT = 1e-7  # without pivots rounding grows by one over the shift, which it must stay far below
_REFINEMENTS = 30
_GAINED = 0.7
_SOLVED = 1e-9
_POWER = 12
_LOOSE = 1e-2


def import_scipy() -> Any:
    """The part of scipy that factors sparse matrices, or an error that says how to install it."""
    try:
        import scipy.sparse
        import scipy.sparse.linalg
    except ImportError as error:
        raise ImportError(
            "qp: sparse programs are factored by scipy, which is not installed; try pip install torchimplicit[optim]"
            + OTHERWISE
        ) from error
    return scipy.sparse


class Factor:
    r"""A symmetric matrix that may be singular, with a first block that bends upwards and a second one of zero.

    With $J$ the identity with a minus at the second block, $K + s J$ is quasi-definite: it has a factor without pivots,
    in the order that fills least (R. J. Vanderbei, SIAM J. Optim. 5(1), 1995). Solutions are refined without the shift,
    so that consistent systems are solved whether or not their solution is unique.

    Args:
        values: of the entries, `(k,)`, in units in which all is about one.
        row: `(k,)`.
        column: `(k,)`.
        first: size of the first block.
        second: size of the second block.
    """

    def __init__(self, values: Tensor, row: Tensor, column: Tensor, first: int, second: int):
        """Factors it."""
        self.first = first
        self.signs = torch.cat((torch.ones(first, device="cpu"), -torch.ones(second, device="cpu"))).double()
        self.matrix = _matrix(values, row, column, first + second)
        self.factor = _factored(self.matrix, self.signs * _SHIFT)

    def solve(self, right: Tensor, terms: float = 0.0) -> tuple[Tensor, float]:
        """Solves, refined until rounding is all that is left.

        Corrections are combined so that the residual is least (GCR: S. C. Eisenstat, H. C. Elman, M. H. Schultz, SIAM
        J. Numer. Anal. 20(2), 1983): what the matrix holds back no more than the shift takes one step, not twenty.

        Args:
            right: `(n,)`.
            terms: the size of what it is the small difference of.

        Returns:
            The solution `(n,)` and the relative residual.
        """
        found, left = torch.zeros_like(right), right
        best = float(right.norm())
        size = best + terms
        steps: list[tuple[Tensor, Tensor]] = []
        while best > 0 and self.factor is not None and len(steps) < _REFINEMENTS:
            step = self._shifted(left)
            moved = self._times(step)
            for earlier, its in steps:
                along = its @ moved
                step, moved = step - along * earlier, moved - along * its
            length = float(moved.norm())
            if not length > 0:
                break
            steps.append((step / length, moved / length))
            more = found + (steps[-1][1] @ left) * steps[-1][0]
            other = right - self._times(more)
            residual = float(other.norm())
            if not residual < best:
                break
            stuck = residual > _GAINED * best
            found, left, best = more, other, residual
            if stuck:
                break
        return found, best / size if size > 0 else 0.0

    def shortest(self, right: Tensor) -> tuple[Tensor, float]:
        """The least-squares solution of a system that may have none: what nothing holds back is left out."""
        found, residual = self.solve(right)
        if residual <= _SOLVED:
            return found, residual
        return self.solve(right - self._held_by_nothing(right.unsqueeze(1)).squeeze(1))[0], residual

    def loose(self) -> tuple[bool, bool]:
        """Whether unknowns of the first, and of the second block are not determined: forces move them for ever."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(self.signs), 4, generator=generator, dtype=torch.float64, device="cpu")
        left = self._held_by_nothing(noise)
        first, second = (bool((part.norm(dim=0) > _LOOSE).any()) for part in left.tensor_split([self.first]))
        return first, second

    def _held_by_nothing(self, right: Tensor) -> Tensor:
        """The part of forces along which only the shift holds back: what the proximal point method leaves. `(n, k)`."""
        if self.factor is None:
            return torch.zeros_like(right)
        for _ in range(_POWER):
            right = self._shifted(self.signs.unsqueeze(1) * right * _SHIFT)
        return right

    def _shifted(self, right: Tensor) -> Tensor:
        return torch.from_numpy(self.factor.solve(right.numpy()))

    def _times(self, vector: Tensor) -> Tensor:
        return torch.from_numpy(self.matrix @ vector.numpy())


def is_convex(values: Tensor, row: Tensor, column: Tensor, count: int, shift: float) -> bool:
    """Whether a symmetric matrix plus a multiple of the identity has positive eigenvalues only.

    Args:
        values: of the entries, `(k,)`.
        row: `(k,)`.
        column: `(k,)`.
        count: of rows.
        shift: the multiple.
    """
    own = row == column
    diagonal = torch.zeros(count, dtype=torch.float64, device="cpu").index_add(0, row[own], values[own])
    others = torch.zeros(count, dtype=torch.float64, device="cpu").index_add(0, row[~own], values[~own].abs())
    if bool((diagonal + shift >= others).all()):  # S. Gershgorin
        return True
    if bool((diagonal + shift <= 0).any()):
        return False
    factor = _factored(
        _matrix(values, row, column, count), torch.full((count,), shift, dtype=torch.float64, device="cpu")
    )
    if factor is None or not bool((factor.perm_r == factor.perm_c).all()):  # a pivot was needed
        return False
    return bool((factor.U.diagonal() > 0).all())


def _matrix(values: Tensor, row: Tensor, column: Tensor, count: int) -> Any:
    return import_scipy().csc_matrix((values.numpy(), (row.numpy(), column.numpy())), shape=(count, count))


def _factored(matrix: Any, shifts: Tensor) -> Any:
    """The factor of a symmetric matrix with shifts on its diagonal, without pivots; None where there is none."""
    if not len(shifts):
        return None
    sparse = import_scipy()
    shifted, options = (matrix + sparse.diags(shifts.numpy())).tocsc(), {"SymmetricMode": True}
    try:
        return sparse.linalg.splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    except RuntimeError:  # exactly singular, by rounding
        return None

"""Products of matrices and vectors with any dimensions in front."""

from __future__ import annotations

from torch import Tensor


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """`M v`, `(..., m)`, for matrices `(..., m, n)` and vectors `(..., n)`; a matrix for all is not copied.

    Where there is one dimension in front, `torch.bmm` makes fewer operations of it, which programs make use of.
    """
    return vector @ matrix.mT if matrix.dim() == 2 else (matrix @ vector.unsqueeze(-1)).squeeze(-1)

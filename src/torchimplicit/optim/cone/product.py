"""Products of matrices and vectors, of which a whole Jacobian can be made without copies of the matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint.products import fold
from torchimplicit.core import transforms


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """`M v`, sample by sample: `(B, r, n)` and `(B, n)` give `(B, r)`."""
    return _Times.apply(matrix, vector)


class _Times(transforms.ForwardOnce):
    """Under `torch.vmap` over vectors alone these become the columns of one product.

    `torch.bmm` would copy the matrix for each of them; and that is how Jacobians are built, `n` vectors at a time.
    """

    @staticmethod
    def forward(matrix: Tensor, vector: Tensor) -> Tensor:
        return torch.bmm(matrix, vector.unsqueeze(2)).squeeze(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        matrix, vector = ctx.saved_tensors
        by_matrix = grad.unsqueeze(2) * vector.unsqueeze(1) if ctx.needs_input_grad[0] else None
        return by_matrix, times(matrix.mT, grad) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, matrix_tangent: Tensor | None, vector_tangent: Tensor | None) -> Tensor:
        matrix, vector = ctx.saved_tensors
        result = torch.zeros_like(matrix[:, :, 0])
        if matrix_tangent is not None:
            result = result + times(matrix_tangent, vector)
        return result if vector_tangent is None else result + times(matrix, vector_tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, matrix: Tensor, vector: Tensor) -> tuple[Tensor, int]:
        matrix_dim, vector_dim = in_dims
        if matrix_dim is None:
            return torch.bmm(matrix, vector.movedim(vector_dim, 2)), 2
        count = info.batch_size
        result = times(fold(matrix, matrix_dim, count), fold(vector, vector_dim, count))
        return result.unflatten(0, (count, -1)), 0

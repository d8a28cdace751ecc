r"""The positive part of a symmetric matrix, differentiable to every order, repeated eigenvalues or not.

Eigenvectors of a repeated eigenvalue have no derivative, the positive part has. So nothing here differentiates an
eigenvector. With the absolute value $M = |X| = \sqrt{X^2}$ the positive part is $(X + M) / 2$, and $M^2 = X^2$ gives

$$ M \dot M + \dot M M = X \dot X + \dot X X . $$

Three functions close under this: `PositivePart`, $(X + M) / 2$; `Slope`, $T(X, H) = \dot M$ for $\dot X = H$; and
`Lyapunov`, $L(X, C)$, the $U$ with $M U + U M = C$. Once more differentiated, in the direction $K$,

$$ \dot T = T(X, \dot H) + L(X, K H + H K - T(X, K)\,U - U\,T(X, K)), \qquad
   \dot L = L(X, \dot C - T(X, K)\,U - U\,T(X, K)), $$

where $U$ is the value. $T$ and $L$ are self-adjoint in their second argument. In the basis of eigenvectors both are
products by entries; $T$ is never computed from $L$, whose denominators may be small where those of $T$ cancel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms


class PositivePart(transforms.ForwardOnce):
    """`(X + |X|) / 2` of symmetric matrices `(..., n, n)`; and eigenvalues and eigenvectors, of no derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One eigenvalue problem."""
        values, vectors = torch.linalg.eigh(X)
        return (vectors * values.clamp_min(0).unsqueeze(-2)) @ vectors.mT, values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keeps the matrix and its eigenvalues and eigenvectors."""
        _, values, vectors = output
        ctx.mark_non_differentiable(values, vectors)
        ctx.save_for_backward(*inputs, values, vectors)
        ctx.save_for_forward(*inputs, values, vectors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        """`(G + T(X, G)) / 2`."""
        return (grad + Slope.apply(ctx.saved_tensors[0], grad, *ctx.saved_tensors[1:])) / 2

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None, None]:
        """`(K + T(X, K)) / 2`."""
        X, *basis = ctx.saved_tensors
        return (tangent + Slope.apply(X, tangent, *basis)) / 2, None, None


class Slope(transforms.ForwardOnce):
    """`T(X, H)`, the derivative of the absolute value at `X` in the direction `H`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor, H: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        """Products by divided differences of the absolute value, between -1 and 1."""
        total = values.unsqueeze(-1) + values.unsqueeze(-2)
        return _in_basis(H, vectors, total / _positive(_sums(values)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps arguments and value."""
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By the head of this file, transposed."""
        X, H, *basis, U = ctx.saved_tensors
        by_direction = Slope.apply(X, grad, *basis)
        if not ctx.needs_input_grad[0]:
            return None, by_direction, None, None
        W: Any = Lyapunov.apply(X, grad, *basis)
        by_matrix = W @ H.mT + H.mT @ W - Slope.apply(X, W @ U.mT + U.mT @ W, *basis)
        return by_matrix, by_direction, None, None

    @staticmethod
    def jvp(ctx: Any, K: Tensor | None, tangent: Tensor | None, *_: Any) -> Tensor:
        """By the head of this file."""
        X, H, *basis, U = ctx.saved_tensors
        result: Any = 0 if tangent is None else Slope.apply(X, tangent, *basis)
        if K is not None:
            D: Any = Slope.apply(X, K, *basis)
            result = result + Lyapunov.apply(X, K @ H + H @ K - D @ U - U @ D, *basis)
        return result


class Lyapunov(transforms.ForwardOnce):
    """`L(X, C)`, the `U` with `|X| U + U |X| = C`; zero between eigenvectors whose eigenvalue is zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor, C: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        """Quotients by sums of absolute eigenvalues; those that are nothing but rounding count as zero."""
        sums = _sums(values)
        nothing = torch.finfo(sums.dtype).eps * sums.amax((-1, -2), keepdim=True)
        return _in_basis(C, vectors, torch.where(sums > nothing, 1 / _positive(sums), 0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps the matrix and the value."""
        X, _, *basis = inputs
        ctx.save_for_backward(X, *basis, output)
        ctx.save_for_forward(X, *basis, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By the head of this file, transposed."""
        X, *basis, U = ctx.saved_tensors
        W: Any = Lyapunov.apply(X, grad, *basis)
        if not ctx.needs_input_grad[0]:
            return None, W, None, None
        return -Slope.apply(X, W @ U.mT + U.mT @ W, *basis), W, None, None

    @staticmethod
    def jvp(ctx: Any, K: Tensor | None, tangent: Tensor | None, *_: Any) -> Tensor:
        """By the head of this file."""
        X, *basis, U = ctx.saved_tensors
        right: Any = 0 if tangent is None else tangent
        if K is not None:
            D: Any = Slope.apply(X, K, *basis)
            right = right - D @ U - U @ D
        return Lyapunov.apply(X, right, *basis)


def _in_basis(H: Tensor, vectors: Tensor, factors: Tensor) -> Tensor:
    return vectors @ (factors * (vectors.mT @ H @ vectors)) @ vectors.mT


def _sums(values: Tensor) -> Tensor:
    size = values.abs()
    return size.unsqueeze(-1) + size.unsqueeze(-2)


def _positive(sums: Tensor) -> Tensor:
    return torch.where(sums > 0, sums, 1)

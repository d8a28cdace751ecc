"""Products with the Jacobian of a function by some of its inputs, closed under every transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, func

Gradients = list[Tensor | None]


def vjp(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needs: Sequence[bool], cotangent: Tensor
) -> list[Tensor | None]:
    """The vector-Jacobian product of a function by those inputs that need it."""
    wanted = [i for i, need in enumerate(needs) if need]
    if not wanted:
        return [None] * len(needs)
    _, back, *_ = func.vjp(_of_some(function, inputs, wanted), *(inputs[i] for i in wanted))
    grads: list[Tensor | None] = [None] * len(needs)
    for i, grad in zip(wanted, back(cotangent), strict=True):
        grads[i] = grad
    return grads


def jvp(function: Callable[..., Tensor], inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """The Jacobian-vector product of a function by those inputs that have a tangent."""
    given = {i: tangent for i, tangent in enumerate(tangents) if tangent is not None}
    wanted = list(given)
    value, back, *_ = func.vjp(_of_some(function, inputs, wanted), *(inputs[i] for i in wanted))
    _, back_twice, *_ = func.vjp(back, torch.zeros_like(value))
    return back_twice(tuple(tangent.clone() for tangent in given.values()))[0]


def _of_some(function: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: list[int]) -> Callable[..., Tensor]:
    """A function as one of only the wanted inputs, the others held."""

    def partial(*some: Tensor) -> Tensor:
        everything = list(inputs)
        for i, tensor in zip(wanted, some, strict=True):
            everything[i] = tensor
        return function(*everything)

    return partial


def fold(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """`(B, n)` mapped over `dim`, or not at all, as `(count * B, n)`."""
    front = tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return front.flatten(0, 1)


def summed(totals: Gradients, more: Sequence[Tensor | None]) -> Gradients:
    """Sums of gradients, None being none."""
    return [
        each if total is None else total if each is None else total + each
        for total, each in zip(totals, more, strict=True)
    ]

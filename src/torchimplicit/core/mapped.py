"""Problems under `torch.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.problem import Problem, Residual, Slope


class Mapped:
    """A problem under `torch.vmap`: the mapped dimension, of size `count`, folded into the batch.

    Args:
        problem: the problem of one mapped element.
        count: size of the mapped dimension.
        dims: where each explicit tensor is mapped, None where it is not.
    """

    def __init__(self, problem: Problem | Mapped, count: int, dims: tuple[int | None, ...]):
        """Wraps a problem; may itself be wrapped."""
        self.problem, self.count, self.dims = problem, count, dims
        self.eps: float = problem.eps
        self.scalars: int = problem.scalars
        self.comparable: bool = problem.comparable
        self.slopes: bool = problem.slopes
        self.squares: bool = problem.squares

    def check_captures(self, value: Any, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
        """See `Problem.check_captures`."""
        self.problem.check_captures(value, tensors)

    @contextmanager
    def bind(
        self, tensors: list[Tensor] | tuple[Tensor, ...], audit: bool = False, keep_buffers: bool = False
    ) -> Iterator[Residual]:
        """The residual on `(count * B, n)`; see `Problem.bind`. A captured tensor is found outside of the map."""

        def one(z: Tensor, *tensors: Tensor) -> Any:
            with self.problem.bind(tensors) as residual:
                return residual.evaluate(z, None)

        def terms_of_one(z: Tensor, *tensors: Tensor) -> Tensor:
            with self.problem.bind(tensors) as residual:
                return residual.terms(z)  # type: ignore[attr-defined]

        def folded(function: Callable) -> Callable[[Tensor], Any]:
            mapped = torch.vmap(function, in_dims=(0, *self.dims), randomness="different")

            def evaluate(z: Tensor) -> Any:
                value = mapped(z.unflatten(0, (self.count, -1)), *tensors)
                return pytree.tree_map(lambda part: part.flatten(0, 1), value)

            return evaluate

        whole = folded(one)

        def evaluate(z: Tensor, out: Tensor | None) -> Any:
            value = whole(z)
            if out is None:
                return value
            return (out.copy_(value[0]), value[1]) if self.slopes else out.copy_(value)

        if self.slopes:
            yield Slope(evaluate, self.eps, terms=folded(terms_of_one) if self.squares else None)
        else:
            residual = Residual(evaluate, self.eps)
            residual.comparable = self.comparable
            yield residual

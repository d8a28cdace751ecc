"""Problems with known solutions: contractions of every state shape, small and in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.equations import fixed_point


@dataclass(frozen=True)
class Case:
    """A contraction `f(z, *args)` with its start and arguments.

    Attributes:
        name: for test identifiers.
        f: the map; pure, of its arguments alone.
        z0: the start.
        args: the differentiable arguments.
        batch_dims: see `fixed_point`.
    """

    name: str
    f: Callable
    z0: Any
    args: tuple[Tensor, ...]
    batch_dims: int = 1

    def to(self, dtype: torch.dtype) -> Case:
        """The same case in another floating dtype (complex leaves stay complex)."""

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)

        z0, args = pytree.tree_map(convert, self.z0), tuple(convert(arg) for arg in self.args)
        return Case(self.name, self.f, z0, args, self.batch_dims)

    def solve(self, *args: Tensor, **options: Any) -> Any:
        """The `Solution` for these arguments."""
        return fixed_point(self.f, self.z0, *args, batch_dims=self.batch_dims, **options)

    def unrolled(self, *args: Tensor, steps: int = 200) -> Any:
        """The solution by plain iteration, differentiable by plain autograd: the reference."""
        z = self.z0
        for _ in range(steps):
            z = self.f(z, *args)
        return z


def total(value: Any) -> Tensor:
    """A nonlinear scalar of a nested value, real also where the value is complex."""
    real = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in pytree.tree_leaves(value)]
    return sum((leaf.sin() * torch.linspace(1, 2, leaf.numel()).to(leaf).view_as(leaf)).sum() for leaf in real)  # type: ignore[return-value]


def _tanh(z: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ weight + x)


def _nested(z: dict, weight: Tensor, x: Tensor) -> dict:
    first, (second,) = z["first"], z["rest"]
    mixed = second.flatten(1) @ weight
    return {
        "first": torch.tanh(mixed[:, :3] + x[:, :3]),
        "rest": [0.5 * torch.sin(second + first.mean(1)[:, None, None])],
    }


def _coupled(z: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ weight + z.mean(0) * 0.3 + x)


def _complex(z: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return torch.polar(torch.tanh(0.5 * z.abs()), 0.3 * z.real) @ weight + x


def _cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    zeros = torch.zeros(3, 4, dtype=torch.float64)
    nested = {"first": zeros[:, :3].clone(), "rest": [torch.zeros(3, 2, 2, dtype=torch.float64)]}
    return [
        Case("tensor", _tanh, zeros, (0.15 * rand(4, 4), rand(3, 4))),
        Case("volume", _tanh, torch.zeros(2, 3, 2, 4, dtype=torch.float64), (0.25 * rand(4, 4), rand(2, 3, 2, 4))),
        Case("nested", _nested, nested, (0.25 * rand(4, 4), rand(3, 4))),
        Case("coupled", _coupled, zeros, (0.2 * rand(4, 4), rand(3, 4)), batch_dims=0),
        Case(
            "complex",
            _complex,
            torch.ones(3, 2, dtype=torch.complex128),
            (0.2 * rand(2, 2, dtype=torch.complex128), rand(3, 2, dtype=torch.complex128)),
        ),
    ]


CASES = _cases()

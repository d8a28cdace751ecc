"""Transformations that leave a set of images as it is: turns, flips, shifts, drawn for every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.nn.score.noise import Normals
from torchimplicit.sde.seeds import Seed


class Group(Protocol):
    """A group of transformations of images; `g(x, seed)` applies one of its elements to every sample."""

    def __call__(self, x: Tensor, seed: Seed = None) -> Tensor:
        """Images of the shape of `x`, `(B, ..., H, W)`, each transformed by an element of its own, linearly."""
        ...


@dataclass(frozen=True)
class Shift:
    """Cyclic shifts by whole pixels, down and to the right.

    Not for an operator that commutes with shifts, as a blur around the edges does: equivariance then says nothing.

    Args:
        limit: of the shift along each axis; None for any.
    """

    limit: int | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        if self.limit is not None:
            require_count("Shift", limit=self.limit)

    def __call__(self, x: Tensor, seed: Seed = None) -> Tensor:
        """See `Group`."""
        part = _uniform(x, seed, 2)
        sizes = part.new_tensor(x.shape[-2:])
        limit = (sizes - 1) / 2 if self.limit is None else part.new_tensor([self.limit] * 2)
        moves = ((2 * limit + 1) * part).floor() - limit.floor()
        shifts = [(int(down), int(right)) for down, right in moves]
        return _together([each.roll(shift, (-2, -1)) for each, shift in zip(x, shifts, strict=True)], x)


@dataclass(frozen=True)
class QuarterTurn:
    """Turns by 0, 90, 180 or 270 degrees, of square images."""

    def __call__(self, x: Tensor, seed: Seed = None) -> Tensor:
        """See `Group`.

        Raises:
            ValueError: the images are not square.
        """
        if x.dim() < 3 or x.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"QuarterTurn: got images {tuple(x.shape)}, expected square ones, (B, ..., N, N); try Flip()"
            )
        turns = (4 * _uniform(x, seed, 1)).long()
        return _together([each.rot90(int(turn), (-2, -1)) for each, turn in zip(x, turns, strict=True)], x)


@dataclass(frozen=True)
class Flip:
    """Images upside down, or left to right, or both, or neither."""

    def __call__(self, x: Tensor, seed: Seed = None) -> Tensor:
        """See `Group`."""
        which = _uniform(x, seed, 2) < 0.5
        axes = [tuple(axis for axis, on in zip((-2, -1), some, strict=True) if bool(on)) for some in which]
        return _together([each.flip(some) for each, some in zip(x, axes, strict=True)], x)


def _together(moved: list[Tensor], x: Tensor) -> Tensor:
    """Samples as a batch, like `x`, also where there are none."""
    return torch.stack(moved) if moved else x


def _uniform(x: Tensor, seed: Seed, count: int) -> Tensor:
    """Numbers in [0, 1) of every sample, `(B, count)`."""
    if x.dim() < 3:
        raise ValueError(f"got images {tuple(x.shape)}, expected (B, ..., H, W)")
    normal = Normals(seed, len(x), (count,), torch.empty((), dtype=torch.float64, device=x.device)).draw(0)
    return torch.special.ndtr(normal).clamp_max(1 - 1e-9)

"""What a deformation is looked for in: one level of a pair, and the moving image as a displacement shows it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchimplicit.imaging.register.axes import halved, mapped
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.pair import Pair
from torchimplicit.imaging.register.sample import Interpolation, sample, spline_coefficients
from torchimplicit.imaging.register.transform import Linear
from torchimplicit.imaging.register.warp import identity
from torchimplicit.imaging.register.weights import framed, looked


class Scene(NamedTuple):
    """What one level looks at.

    Attributes:
        fixed: `(B, C, *S)`.
        moving: `(B, C, *T)`, spline coefficients where the interpolation is cubic; with weights where there is a mask,
            see `framed`.
        grid: of the fixed image.
        leave: from its voxels by the initial map to those of the moving one, `(B, D + 1, D + 1)`.
        x: its voxels' indices, `(D, *S)`.
        interpolation: of the moving image, and of velocities.
        mask: how much the fixed voxels count, `(B, 1, *S)`, or one for all of a sample; None without any mask.
    """

    fixed: Tensor
    moving: Tensor
    grid: Grid
    leave: Tensor
    x: Tensor
    interpolation: Interpolation
    mask: Tensor | None

    @property
    def units(self) -> list[float]:
        """See `Grid.units`."""
        return self.grid.units

    def warped(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """The moving image along a displacement, and what counts of it; see `seen`."""
        return seen(self.moving, self.leave, self.mask, self.x, u, self.interpolation)

    @classmethod
    def of(
        cls, pair: Pair, initial: Linear, shrink: int, interpolation: Interpolation, features: nn.Module | None = None
    ) -> Scene:
        """That of a pair, already prepared, after as many halvings as `shrink` has factors of two."""
        fixed, moving, grid, other = pair.fixed, pair.moving, pair.fixed_grid, pair.moving_grid
        masks = [pair.fixed_mask, pair.moving_mask]
        for _ in range(shrink.bit_length() - 1):
            limit = 1.5 * min(grid.spacing)
            axes, others = grid.axes_within(limit), other.axes_within(limit)
            fixed, moving = halved(fixed, axes), halved(moving, others)
            masks = [m if m is None else halved(m, a) for m, a in zip(masks, (axes, others), strict=True)]
            grid, other = grid.halved(axes), other.halved(others)
        if features is not None:
            fixed, moving = (_channels(features, each) for each in (fixed, moving))
        moving = spline_coefficients(moving) if interpolation == "cubic" else moving
        leave = (torch.linalg.inv(other.affine) @ initial.matrix @ grid.affine).to(fixed)
        mask = masks[0]
        if masks != [None, None]:
            mask = fixed.new_ones(len(fixed), *[1] * (1 + grid.space)) if mask is None else mask
            moving, leave = framed(moving, masks[1], leave, interpolation, [1] * grid.space)
        return cls(fixed, moving, grid, leave, identity(grid.size, fixed), interpolation, mask)


def seen(
    moving: Tensor, leave: Tensor, mask: Tensor | None, x: Tensor, u: Tensor, interpolation: Interpolation
) -> tuple[Tensor, Tensor | None]:
    """The moving image along a displacement `(B, D, *S)` and then a linear map, `(B, C, *S)`, and weights: `looked`.

    Without a mask there are none: to weigh by overlap alone takes half as long again, and was worth nothing on pairs of
    one organ.
    """
    at = (x + u).flatten(2)
    at = mapped(leave, at)
    if mask is None:
        return sample(moving, at, interpolation=interpolation, prefilter=False).unflatten(2, u.shape[2:]), None
    warped, weights = looked(moving, at, mask.flatten(2), interpolation)
    return warped.unflatten(2, u.shape[2:]), weights.unflatten(2, u.shape[2:])


def _channels(features: nn.Module, image: Tensor) -> Tensor:
    """What is compared in the place of an image."""
    found = features(image)
    if not isinstance(found, Tensor) or found.shape[:1] != image.shape[:1] or found.shape[2:] != image.shape[2:]:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"Demons(features): got {got} of an image {tuple(image.shape)}, expected {_like(image)}")
    return found


def _like(image: Tensor) -> str:
    return f"({len(image)}, channels, {', '.join(map(str, image.shape[2:]))})"

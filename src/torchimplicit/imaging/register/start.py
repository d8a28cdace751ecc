"""Where a registration starts: places, transforms and fields, as a linear map and a displacement before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.pair import Pair
from torchimplicit.imaging.register.sample import sample
from torchimplicit.imaging.register.transform import Chain, Displacement, Linear, Transform, Velocity


def started(initial: Any, pair: Pair, grid: Grid) -> Transform:
    """The transform to start from; see `align`.

    Args:
        initial: as `align` has it, but for registrations.
        pair: what is registered.
        grid: of the fixed image, as it was given.
    """
    batch, space = len(pair.fixed), pair.fixed_grid.space
    if isinstance(initial, Tensor):
        initial = Displacement(_vectors(initial, batch, grid).to(pair.fixed), grid)
    if isinstance(initial, Transform):
        for part in initial.parts if isinstance(initial, Chain) else (initial,):
            _check(part, batch, space)
        return initial
    matrix = torch.eye(space + 1, dtype=torch.float64, device="cpu")
    if isinstance(initial, str) and initial == "centers":
        matrix[:-1, -1] = pair.moving_grid.center - pair.fixed_grid.center
    elif not isinstance(initial, str) or initial != "world":
        raise ValueError(
            f"align(initial={initial!r}): expected 'world', 'centers', a transform, a registration, or a displacement "
            f"{(batch, space, *grid.size)}"
        )
    return Linear(matrix.expand(batch, -1, -1))


def linear_part(transform: Transform, batch: int, space: int) -> Linear:
    """The linear map that a transform ends with; that to the same place where it ends with none."""
    last = transform.parts[-1] if isinstance(transform, Chain) else transform
    return (
        last
        if isinstance(last, Linear)
        else Linear(torch.eye(space + 1, dtype=torch.float64, device="cpu").expand(batch, -1, -1))
    )


def field_part(
    transform: Transform, grid: Grid, like: Tensor, own: type[Velocity] | type[Displacement]
) -> Tensor | None:
    """What a transform does before its last linear map, as vectors in voxels of a grid; None where that is nothing.

    Of a single field of the kind asked for these are its own vectors, else displacements. Not differentiated: where an
    equilibrium or a minimum is does not depend on where the way to it began.

    Args:
        transform: any.
        grid: where to have it.
        like: gives dtype, device and the number of samples.
        own: the kind asked for.

    Returns:
        `(B, D, *S)`.
    """
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    parts = parts[:-1] if isinstance(parts[-1], Linear) else parts
    if not parts:
        return None
    with torch.no_grad():
        if len(parts) == 1 and isinstance(parts[0], own):
            return carried(parts[0].vectors.to(like), parts[0].grid, grid)
        points = grid.points(torch.zeros((), dtype=torch.float64, device=like.device))
        moved = Chain(tuple(parts))(points.expand(len(like), -1, -1))
        return (grid.voxels_of(moved) - grid.voxels_of(points)).mT.unflatten(2, grid.size).to(like)


def carried(vectors: Tensor, grid: Grid, other: Grid) -> Tensor:
    """Vectors `(B, D, *S)` in voxels of one grid as they are on another, `(B, D, *T)` in its voxels."""
    if grid.size == other.size and torch.equal(grid.affine, other.affine):
        return vectors
    at = (
        grid.voxels_of(other.points(torch.zeros((), dtype=torch.float64, device="cpu")))
        .mT.unflatten(1, other.size)
        .to(vectors)
    )
    change = (torch.linalg.inv(other.affine) @ grid.affine)[:-1, :-1].to(vectors)
    return torch.einsum("ij,bj...->bi...", change, sample(vectors, at.expand(len(vectors), *at.shape)))


def _vectors(initial: Tensor, batch: int, grid: Grid) -> Tensor:
    expected = (batch, grid.space, *grid.size)
    if not initial.is_floating_point() or tuple(initial.shape) != expected:
        raise ValueError(
            f"align(initial): got {initial.dtype} {tuple(initial.shape)}, expected a floating displacement {expected}, "
            "in voxels of the fixed image; try Displacement(vectors, grid) for one of another grid"
        )
    return initial.detach()


def _check(part: Transform, batch: int, space: int) -> None:
    if isinstance(part, Linear) and part.matrix.shape != (batch, space + 1, space + 1):
        got = tuple(part.matrix.shape)
        raise ValueError(f"align(initial): got matrices {got}, expected {(batch, space + 1, space + 1)}")
    if isinstance(part, Linear) and bool((torch.linalg.matrix_rank(part.matrix.detach()) <= space).any()):
        raise ValueError(
            "align(initial): got a singular matrix, which lays the fixed image on a plane of the moving one or less; "
            "expected one with an inverse"
        )
    if isinstance(part, Velocity | Displacement) and part.vectors.shape[:2] != (batch, space):
        got = tuple(part.vectors.shape)
        raise ValueError(f"align(initial): got vectors {got}, expected {batch} samples' own, ({batch}, {space}, ...)")

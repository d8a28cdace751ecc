"""Displacement fields, in voxels of their grid: images along them, one after another, and whether they fold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.core.options import is_count, require_instance
from torchimplicit.imaging.register.sample import Interpolation, Padding, sample


def identity(size: Sequence[int], like: Tensor) -> Tensor:
    """The positions of all voxels of a grid, `(D, *size)`, of a tensor's dtype, on its device."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(
    image: Tensor,
    displacement: Tensor,
    *,
    interpolation: Interpolation = "linear",
    padding: Padding = "border",
    prefilter: bool = True,
) -> Tensor:
    """An image pulled back along a displacement: `x -> image(x + u(x))`.

    By zero it is the image, to the bit ("cubic": to rounding); by whole voxels the shifted image.

    Args:
        image: `(B, C, *S)`; labels by `interpolation="nearest"`, or `warp_labels`.
        displacement: $u$, `(B, D, *T)`, in voxels.
        interpolation: see `sample`.
        padding: see `sample`.
        prefilter: see `sample`.

    Returns:
        `(B, C, *T)`.

    Raises:
        TypeError: see `sample`.
        ValueError: see `sample`.
    """
    check_field("warp", displacement)
    positions = displacement + identity(displacement.shape[2:], displacement)
    return sample(image, positions, interpolation=interpolation, padding=padding, prefilter=prefilter)


def warp_labels(labels: Tensor, displacement: Tensor, *, by: str = "nearest") -> Tensor:
    """Labels pulled back along a displacement, which are labels again.

    There are two conventions, and a Dice of one is no Dice of the other. "nearest" takes the label of the nearest
    voxel. "linear" blends the maps of all labels linearly and takes the largest, the smallest label of equal ones: it
    is smoother, and thin structures lose their ends.

    Args:
        labels: integers, `(B, 1, *S)`.
        displacement: `(B, D, *T)`, in voxels.
        by: "nearest" or "linear".

    Returns:
        `(B, 1, *T)`, of the dtype of the labels.

    Raises:
        TypeError: the labels are no integers.
        ValueError: see `warp`; or `by` is none of the two.
    """
    check_labels("warp_labels", labels)
    check_field("warp_labels", displacement)
    return labels_at(labels, displacement + identity(displacement.shape[2:], displacement), by)


def labels_at(labels: Tensor, positions: Tensor, by: str) -> Tensor:
    """Labels at positions; see `warp_labels`."""
    if by == "nearest":
        return sample(labels, positions, interpolation="nearest")
    if by != "linear":
        raise ValueError(f"warp_labels(by={by!r}): expected 'nearest' or 'linear'")
    values = labels.unique()  # sorted, and argmax takes the first
    maps = (labels == values.view(1, -1, *[1] * (labels.ndim - 2))).to(positions.dtype)
    return values[sample(maps, positions).argmax(1, keepdim=True)]


def compose(first: Tensor, second: Tensor, *, interpolation: Interpolation = "linear") -> Tensor:
    """The displacement of going along one field and from there along another: `first + second(x + first)`.

    An image warped by it is, but for interpolation, `warp(warp(image, second), first)`. Beyond its grid a field is what
    it is at the border.

    Args:
        first: `(B, D, *S)`, in voxels.
        second: as `first`.
        interpolation: see `sample`.

    Returns:
        As `first`.

    Raises:
        ValueError: the fields are none, or of different grids.
    """
    check_field("compose(first)", first)
    check_field("compose(second)", second)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"compose: got fields {tuple(first.shape)} and {tuple(second.shape)}, expected two of one grid; "
            "try sample to bring one onto the other's, and voxels of the other's length"
        )
    return first + warp(second, first, interpolation=interpolation)


def difference(x: Tensor, axis: int) -> Tensor:
    """Central differences along an axis, one-sided at its ends, zero where there is one voxel."""
    n = x.shape[axis]
    if n == 1:
        return torch.zeros_like(x)
    ends = [x.narrow(axis, i + 1, 1) - x.narrow(axis, i, 1) for i in (0, n - 2)]
    inner = (x.narrow(axis, 2, n - 2) - x.narrow(axis, 0, n - 2)) / 2
    return torch.cat((ends[0], inner, ends[1]), axis)


def det_jacobian(displacement: Tensor) -> Tensor:
    r"""The volume that a voxel becomes, $\det(I + \partial u / \partial x)$: not its logarithm.

    By central differences, one-sided at the border of the grid, where other programs have other conventions: SimpleITK
    differs by some tenths there, and by rounding inside. Voxels of any edges have the same.

    Args:
        displacement: `(B, D, *S)`, in voxels.

    Returns:
        `(B, *S)`; 1 where nothing changes, at most 0 where space is turned over.

    Raises:
        ValueError: the field is none.
    """
    check_field("det_jacobian", displacement)
    axes = range(displacement.shape[1])
    # Rows are components, columns are axes.
    J = [[difference(displacement[:, i], 1 + j) + float(i == j) for j in axes] for i in axes]
    if len(J) == 2:
        return J[0][0] * J[1][1] - J[0][1] * J[1][0]
    minors = [J[1][k] * J[2][m] - J[1][m] * J[2][k] for k, m in ((1, 2), (2, 0), (0, 1))]
    return J[0][0] * minors[0] + J[0][1] * minors[1] + J[0][2] * minors[2]


def folds(displacement: Tensor, *, border: int = 0) -> Tensor:
    """How many voxels a field turns over: where `det_jacobian` is not positive, or not a number.

    Args:
        displacement: `(B, D, *S)`, in voxels.
        border: voxels to leave out on each side; 1 for figures to compare with those of others, see `det_jacobian`.

    Returns:
        `(B,)` int64; divide by the number of voxels for a share.

    Raises:
        ValueError: the field is none, or the border leaves nothing.
    """
    return (~(inner(det_jacobian(displacement), border, "folds") > 0)).flatten(1).sum(1)


def inner(x: Tensor, border: int, owner: str) -> Tensor:
    """An image `(B, *S)` without its border."""
    if not is_count(border, 0) or 2 * border >= min(x.shape[1:]):
        raise ValueError(f"{owner}(border={border!r}): expected voxels >= 0 that leave some of {tuple(x.shape[1:])}")
    return x[(slice(None), *[slice(border, n - border) for n in x.shape[1:]])]


def check_field(owner: str, displacement: Tensor) -> None:
    """Refuses what is no field of vectors."""
    require_instance(owner, displacement, Tensor, "torch.zeros(1, 2, 8, 8)")
    space = displacement.ndim - 2
    if space not in (2, 3) or displacement.shape[1] != space or not displacement.is_floating_point():
        raise ValueError(
            f"{owner}: got {displacement.dtype} {tuple(displacement.shape)}, expected floats (B, 2, H, W) or "
            "(B, 3, X, Y, Z): a vector at every voxel, in voxels"
        )


def check_labels(owner: str, labels: Tensor) -> None:
    """Refuses labels that are no integers: one half between 1 and 2 belongs to nothing."""
    kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{owner}: got labels of {kind}, expected integers; try .long() where they are whole numbers")
    if labels.ndim not in (4, 5) or labels.shape[1] != 1 or not labels.numel():
        raise ValueError(f"{owner}: got labels {tuple(labels.shape)}, expected (B, 1, H, W) or (B, 1, X, Y, Z)")

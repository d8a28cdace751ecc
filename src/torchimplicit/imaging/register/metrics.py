"""How well two images lie on each other: overlap and distance of labels, points, and how a field bends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.imaging.register.warp import check_labels, det_jacobian, inner

CHUNK = 2**22  # distances at a time
EXACT = "donot_use_mm_for_euclid_dist"  # the other way loses half the digits


def dice(labels: Tensor, truth: Tensor, of: Sequence[int]) -> Tensor:
    r"""Overlap of two label maps, $2 |A \cap B| / (|A| + |B|)$, label by label.

    Of integers: say with a figure how the labels were warped, see `warp_labels`. For maps of probabilities, and as a
    loss, take `soft_dice`.

    Args:
        labels: integers, `(B, 1, *S)`.
        truth: as `labels`.
        of: which labels; the background is none that anybody means.

    Returns:
        `(B, len(of))`, float64; NaN where neither has the label: `.nanmean(1)` leaves such labels out.

    Raises:
        TypeError: an argument is no tensor of integers.
        ValueError: shapes differ.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import register
        >>> one, two = torch.zeros(2, 1, 1, 4, 4, dtype=torch.int64)
        >>> one[..., :2, :], two[..., 1:3, :] = 1, 1
        >>> register.dice(one, two, of=[1])
        tensor([[0.5000]], dtype=torch.float64)
    """
    pairs = _masks("dice", labels, truth, of)
    found = [2 * (a & b).sum(1).double() / (a.sum(1) + b.sum(1)) for a, b in pairs]
    return torch.stack(found, 1)


def soft_dice(maps: Tensor, truth: Tensor) -> Tensor:
    r"""Overlap of maps of probabilities, $2 \sum a b / \sum (a^2 + b^2)$: differentiable, `dice` where all are 0 or 1.

    Source: F. Milletari, N. Navab, S.-A. Ahmadi, 3DV 2016 (arXiv:1606.04797), section 3.

    Args:
        maps: `(B, L, *S)`, a channel a label, in [0, 1].
        truth: as `maps`.

    Returns:
        `(B, L)`; 0 / 0, NaN, where neither has the label.

    Raises:
        ValueError: shapes differ.
    """
    if maps.shape != truth.shape or maps.ndim < 3:
        raise ValueError(f"soft_dice: got {tuple(maps.shape)} and {tuple(truth.shape)}, expected two of (B, L, ...)")
    a, b = maps.flatten(2), truth.flatten(2)
    return 2 * (a * b).sum(2) / (a.square() + b.square()).sum(2)


def hausdorff(
    labels: Tensor,
    truth: Tensor,
    of: Sequence[int],
    *,
    spacing: Sequence[float] | None = None,
    percentile: float = 100.0,
) -> Tensor:
    """The distance within which all of one label's surface lies from the other's, both ways, the larger one.

    Between centres of voxels on surfaces: those of a label with a face towards something else, or towards the end of
    the grid, but along an axis of one voxel. Every pair of them is compared, so it is for organs, not for whole bodies.

    Args:
        labels: integers, `(B, 1, *S)`.
        truth: as `labels`.
        of: which labels.
        spacing: the edges of a voxel; None counts in voxels.
        percentile: of the distances of each surface; 95 leaves the outliers out.

    Returns:
        `(B, len(of))`, float64; infinite where one of the two lacks the label, NaN where both do.

    Raises:
        TypeError: see `dice`.
        ValueError: shapes differ, or an option is impossible.
    """
    space = labels.ndim - 2 if isinstance(labels, Tensor) else 0
    edges = [1.0] * space if spacing is None else list(spacing)
    if len(edges) != space or not all(is_number(edge) and edge > 0 for edge in edges):
        raise ValueError(f"hausdorff(spacing={spacing!r}): expected {space} numbers > 0")
    if not is_number(percentile) or not 0 < percentile <= 100:
        raise ValueError(f"hausdorff(percentile={percentile!r}): expected a number in (0, 100]")
    columns = []
    for a, b in _masks("hausdorff", labels, truth, of):
        shape = labels[:, 0].shape
        pairs = zip(a.view(shape), b.view(shape), strict=True)
        columns.append(torch.stack([_apart(_surface(x, edges), _surface(y, edges), percentile) for x, y in pairs]))
    return torch.stack(columns, 1)


def target_error(found: Tensor, truth: Tensor) -> Tensor:
    """Distances of landmarks from where they belong, the target registration error.

    Args:
        found: points `(B, n, D)`, as a transform moves them; in millimetres for a figure in millimetres.
        truth: as `found`.

    Returns:
        `(B, n)`.

    Raises:
        ValueError: shapes differ.
    """
    if found.shape != truth.shape or found.ndim != 3:
        raise ValueError(f"target_error: got {tuple(found.shape)} and {tuple(truth.shape)}, expected two of (B, n, D)")
    return torch.linalg.vector_norm(found - truth, dim=2)


def sd_log_jacobian(displacement: Tensor, *, border: int = 0, least: float = 1e-9) -> Tensor:
    """How unevenly a field changes volumes: the standard deviation of the logarithm of `det_jacobian`.

    Args:
        displacement: `(B, D, *S)`, in voxels.
        border: see `folds`.
        least: what a determinant counts for where it is smaller. Voxels that fold have no logarithm: see `folds`, too.

    Returns:
        `(B,)`.

    Raises:
        ValueError: the field is none, or the border leaves nothing.
    """
    logarithm = inner(det_jacobian(displacement), border, "sd_log_jacobian").clamp_min(least).log()
    return logarithm.flatten(1).std(1, correction=0)


def _masks(owner: str, labels: Tensor, truth: Tensor, of: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Where the two have each label, `(B, n)` bool."""
    for each in (labels, truth):
        check_labels(owner, each)
    if labels.shape != truth.shape or isinstance(of, int) or not len(of):
        raise ValueError(
            f"{owner}: got {tuple(labels.shape)} and {tuple(truth.shape)}, of={of!r}, expected two label maps of one "
            "shape, and a list of labels"
        )
    return [((labels == label).flatten(1), (truth == label).flatten(1)) for label in of]


def _surface(mask: Tensor, edges: Sequence[float]) -> Tensor:
    """The places of the voxels on the surface of a mask `(*S)`, `(n, D)`."""
    inside = mask.clone()
    for axis in (axis for axis, n in enumerate(mask.shape) if n > 1):
        for shift in (1, -1):
            beside = mask.roll(shift, axis)
            beside.narrow(axis, 0 if shift == 1 else mask.shape[axis] - 1, 1).fill_(False)
            inside &= beside
    return (mask & ~inside).nonzero().double() * torch.tensor(edges, dtype=torch.float64, device=mask.device)


def _apart(a: Tensor, b: Tensor, percentile: float) -> Tensor:
    """The distance of two sets of points `(n, D)`, `(m, D)`."""
    if not len(a) or not len(b):
        return a.new_tensor(torch.nan if len(a) == len(b) else torch.inf)
    ways = []
    for x, y in ((a, b), (b, a)):
        nearest = [torch.cdist(part, y, compute_mode=EXACT).amin(1) for part in x.split(max(1, CHUNK // len(y)))]
        ways.append(torch.quantile(torch.cat(nearest), percentile / 100))
    return torch.stack(ways).amax()

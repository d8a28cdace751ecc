"""Which lines or points of k-space are sampled: as many as were asked for, and others for every seed.

All masks are bool, with the zero frequency at `N // 2`, and count their fully sampled centre among what is sampled. One
seed makes one mask; several, one a sample, make a batch of masks, each what its seed alone would have made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_count, is_number, require_count

Seeds = int | Sequence[int] | Tensor
GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2  # spokes that far apart cover the circle evenly, however many they are
BISECTIONS = 12


def cartesian(
    size: int,
    acceleration: float,
    center_fraction: float = 0.08,
    kind: Literal["random", "equispaced"] = "random",
    seed: Seeds = 0,
) -> Tensor:
    """Lines of a Cartesian grid, bool `(1, size)`, or `(B, 1, size)` of several seeds: `round(size / acceleration)`.

    Lines run along dimension -2, for images of any height; `mask.mT` has them along dimension -1.

    Args:
        size: lines in all.
        acceleration: how many times fewer are sampled, the centre among them; >= 1.
        center_fraction: of the lines, at the centre, that are always sampled; less than `1 / acceleration`.
        kind: "random" takes the others at random, "equispaced" with distances that differ by one at most (the centre
            left out of the count) and an offset at random.
        seed: of the choice, one or one a sample.

    Raises:
        ValueError: the centre alone is more than all that shall be sampled, or another impossible value.

    Examples:
        >>> import torchimplicit as ti
        >>> ti.imaging.cartesian(12, 3, center_fraction=0.2).long()
        tensor([[0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]])
    """
    require_count("cartesian", size=size)
    _check("cartesian", acceleration, center_fraction)
    if kind not in ("random", "equispaced"):
        raise ValueError(f"cartesian(kind={kind!r}): expected 'random' or 'equispaced'")
    count, centre = max(round(size / acceleration), 1), round(center_fraction * size)

    def one(generator: torch.Generator) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool, device="cpu")
        first = size // 2 - centre // 2
        mask[first : first + centre] = True
        rest = (~mask).nonzero().squeeze(1)
        if kind == "random":
            chosen = torch.randperm(len(rest), generator=generator, device="cpu")[: count - centre]
        else:
            offset = torch.rand((), dtype=torch.float64, generator=generator, device="cpu")
            chosen = (torch.arange(count - centre, device="cpu") + offset) * (len(rest) / max(count - centre, 1))
            chosen = chosen.floor().long().clamp_max(len(rest) - 1)
        mask[rest[chosen]] = True
        return mask[None]

    return _of_seeds(one, seed)


def poisson_disc(
    shape: Sequence[int],
    acceleration: float,
    center_fraction: float = 0.01,
    spread: float = 3.0,
    seed: Seeds = 0,
) -> Tensor:
    """Points at random that keep their distance, bool `(H, W)`, or `(B, H, W)`: `round(H W / acceleration)` of them.

    Points are tried in random order, and taken where no taken one is nearer than the distance that is due there. That
    distance is the largest by which there are enough. For two encoded directions; 0.3 s at 128 pixels, 2 s at 320.

    Args:
        shape: `(H, W)`.
        acceleration: how many times fewer points are sampled, the centre among them; >= 1.
        center_fraction: of the points, in a rectangle at the centre, that are always sampled; less than `1 /
            acceleration`.
        spread: how many times larger distances are in the corners than at the centre; >= 1.
        seed: of the choice, one or one a sample.

    Raises:
        ValueError: as of `cartesian`.
    """
    height, width = _plane("poisson_disc", shape)
    _check("poisson_disc", acceleration, center_fraction)
    if not is_number(spread) or not 1 <= spread < math.inf:
        raise ValueError(f"poisson_disc(spread={spread!r}): expected a number >= 1")
    centre = _rectangle(height, width, center_fraction)
    count = max(round(height * width / acceleration), int(centre.sum())) - int(centre.sum())
    rows, columns = torch.arange(height, device="cpu") - height // 2, torch.arange(width, device="cpu") - width // 2
    away = torch.hypot(rows[:, None] / max(height / 2, 1), columns[None] / max(width / 2, 1)) / math.sqrt(2)
    due = (1 + (spread - 1) * away).flatten().tolist()
    outside = (~centre).flatten().nonzero().squeeze(1)

    def one(generator: torch.Generator) -> Tensor:
        order = outside[torch.randperm(len(outside), generator=generator, device="cpu")].tolist()
        low, high, found = 0.0, math.hypot(height, width), order
        for _ in range(BISECTIONS):
            middle = math.sqrt(max(low, 0.5) * high)
            taken = _apart(order, [middle * each for each in due], height, width)
            if len(taken) >= count:
                low, found = middle, taken
            else:
                high = middle
        mask = centre.clone().flatten()
        mask[found[:count]] = True
        return mask.view(height, width)

    return _of_seeds(one, seed)


def radial(shape: Sequence[int], acceleration: float, seed: Seeds = 0) -> Tensor:
    """Spokes through the centre, a golden angle apart, on the grid, bool `(H, W)`, or `(B, H, W)` of several seeds.

    As many spokes as come nearest to `H W / acceleration` points. The points are the grid's, so that `Fourier` and
    `Sense` take them; true radial sampling lies between them.

    Args:
        shape: `(H, W)`.
        acceleration: how many times fewer points are sampled; >= 1, and no more than one spoke gives.
        seed: of the first spoke's angle, one or one a sample.

    Raises:
        ValueError: an impossible value.
    """
    height, width = _plane("radial", shape)
    _check("radial", acceleration, 0.0)
    asked, longest = height * width / acceleration, max(height, width)
    if asked < longest / 2:
        raise ValueError(
            f"radial(acceleration={acceleration}): expected no more than {2 * height * width / longest:.4g}, for one "
            f"spoke of ({height}, {width}) is more than that"
        )
    along = torch.arange(-2 * longest, 2 * longest + 1, dtype=torch.float64, device="cpu") / 2

    def one(generator: torch.Generator) -> Tensor:
        angle = math.pi * float(torch.rand((), dtype=torch.float64, generator=generator, device="cpu"))
        before = mask = torch.zeros(height, width, dtype=torch.bool, device="cpu")
        while int(mask.sum()) < asked:
            rows = (height // 2 + along * math.sin(angle)).round().long()
            columns = (width // 2 + along * math.cos(angle)).round().long()
            within = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            before, mask = mask, mask.clone()
            mask[rows[within], columns[within]] = True
            angle += GOLDEN_ANGLE
        nearer = bool(before.any()) and asked - int(before.sum()) < int(mask.sum()) - asked
        return before if nearer else mask

    return _of_seeds(one, seed)


def _apart(order: list[int], due: list[float], height: int, width: int) -> list[int]:
    """Points in their order of which none is nearer to an earlier one than is due at that, `row * width + column`."""
    blocked, taken = bytearray(height * width), []
    for place in order:
        if blocked[place]:
            continue
        taken.append(place)
        row, column, reach = *divmod(place, width), due[place]
        for other in range(max(math.ceil(row - reach), 0), min(math.floor(row + reach), height - 1) + 1):
            half = math.sqrt(max(reach**2 - (other - row) ** 2, 0.0))
            first, last = max(math.ceil(column - half), 0), min(math.floor(column + half), width - 1)
            if last >= first:
                blocked[other * width + first : other * width + last + 1] = b"\x01" * (last - first + 1)
    return taken


def _rectangle(height: int, width: int, fraction: float) -> Tensor:
    """A rectangle at the centre with a fraction of the points, of the image's proportions."""
    mask = torch.zeros(height, width, dtype=torch.bool, device="cpu")
    rows, columns = (math.floor(size * math.sqrt(fraction)) for size in (height, width))
    top, left = height // 2 - rows // 2, width // 2 - columns // 2
    mask[top : top + rows, left : left + columns] = True
    return mask


def _plane(owner: str, shape: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = shape
    except (TypeError, ValueError):
        raise ValueError(f"{owner}(shape={shape!r}): expected (H, W)") from None
    require_count(owner, height=height, width=width)
    return height, width


def _check(owner: str, acceleration: float, center_fraction: float) -> None:
    """Refuses accelerations below 1, and centres that are all there would be."""
    if not is_number(acceleration) or not 1 <= acceleration < math.inf:
        raise ValueError(f"{owner}(acceleration={acceleration!r}): expected a number >= 1")
    if not is_number(center_fraction) or not 0 <= center_fraction < 1 / acceleration:
        raise ValueError(
            f"{owner}(center_fraction={center_fraction!r}): expected a number in [0, {1 / acceleration:.4g}), less "
            f"than all that an acceleration of {acceleration} samples; try {0.32 / acceleration:.2g}"
        )


def _of_seeds(one: Callable[[torch.Generator], Tensor], seed: Seeds) -> Tensor:
    """The mask of a seed, or those of several."""
    if is_count(seed, least=0):
        return transforms.outside(one, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    seeds = seed.tolist() if isinstance(seed, Tensor) else seed
    if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not all(is_count(each, 0) for each in seeds):
        raise ValueError(f"seed: got {seed!r}, expected an integer >= 0, or one a sample; try range(8)")
    masks = [transforms.outside(one, torch.Generator().manual_seed(each)) for each in seeds or [0]]
    return torch.stack(masks)[: len(seeds)]  # of no seed an empty batch

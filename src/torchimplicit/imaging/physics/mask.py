"""Which lines or points of k-space are sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.options import require_count


def cartesian(size: int, acceleration: float, center_fraction: float = 0.08, seed: int = 0) -> Tensor:
    """Random lines of a Cartesian grid and all of its centre, bool `(1, size)`: `round(size / acceleration)` of them.

    Args:
        size: lines in all.
        acceleration: how many times fewer are sampled, the centre among them.
        center_fraction: of the lines, at the centre, that are always sampled.
        seed: of the choice.
    """
    require_count("cartesian", size=size)
    centre, count = round(center_fraction * size), round(size / acceleration)
    mask = torch.zeros(size, dtype=torch.bool)
    first = size // 2 - centre // 2
    mask[first : first + centre] = True
    rest = (~mask).nonzero().squeeze(1)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    mask[rest[order[: count - centre]]] = True
    return mask[None]

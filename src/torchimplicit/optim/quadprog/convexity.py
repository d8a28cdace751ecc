"""Whether a matrix is convex, but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

NEGATIVE = 1e-9


def convexified(Q: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Which matrices have no negative eigenvalue beyond rounding, `(B,)`; and all, those without what is rounding.

    Args:
        Q: `(B, n, n)`.
        rounding: of the dtype that they came in; 0 for double precision, whose own is left as it is.
    """
    size = Q.abs().amax((1, 2))
    if not bool(size.any()):
        return size == 0, Q
    lowest = torch.linalg.eigvalsh(Q)[:, 0]
    convex = lowest >= -max(NEGATIVE, 4 * Q.shape[1] * rounding) * size
    if not rounding:
        return convex, Q
    return convex, Q + torch.diag_embed((convex * -lowest.clamp(max=0)).unsqueeze(1).expand(-1, Q.shape[1]))

"""Sums over times of which no bit depends on the padding."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

BLOCK = 64


def neighbours_first(x: Tensor) -> Tensor:
    """Sums `(..., T)` to `(...)`, neighbours first: zeros behind the last change no bit of it."""
    while x.shape[-1] > 1:
        x = pad(x, (0, x.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
    return x.squeeze(-1)


def blocks(x: Tensor) -> Tensor:
    """What belongs to times, `(B, T, ...)`, in blocks, the last one filled up with zeros: `(B, K, BLOCK, ...)`.

    A product of matrices rounds otherwise where these are longer; of blocks it does not.
    """
    behind = [0, 0] * (x.dim() - 2)
    return pad(x, (*behind, 0, -x.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))

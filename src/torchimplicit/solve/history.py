"""Writing into preallocated buffers: in place while nothing is recorded, by copy while autograd watches."""

from __future__ import annotations

import torch
from torch import Tensor


def write(buffer: Tensor, slot: int, value: Tensor, dim: int = 1) -> Tensor:
    """Puts `value` into `buffer` at index `slot` of `dim` and returns the buffer (a new one when grad is enabled)."""
    if torch.is_grad_enabled():
        return torch.slice_scatter(buffer, value.unsqueeze(dim), dim, slot, slot + 1)
    buffer.select(dim, slot).copy_(value)
    return buffer

"""The rounding of conditions, within which they count as zero."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.path.events.event import Condition

ROUNDINGS = 64  # of time and state, within which an event is where a solve starts


def sway(condition: Condition, value: Tensor, t: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """How much conditions change by where every unknown changes by about a size, like `value`.

    Times the machine's precision it is what the states' rounding makes of them.

    Args:
        condition: the conditions.
        value: theirs at these states.
        t: times, `(B,)`: those of `value`, or moved by about the square root of a rounding, where theirs shall count.
        y: states, `(B, n)`.
        size: of the unknowns, `(B, n)`, at least zero.
    """
    root = torch.finfo(y.dtype).eps ** 0.5
    places = torch.arange(y.shape[1], dtype=y.dtype, device=y.device)
    apart = root * (1 + (0.618034 * places).frac())  # by no common factor, for their changes might cancel
    return (condition(t, y + apart * torch.copysign(size, y)) - value).abs() / root

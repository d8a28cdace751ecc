"""A vector field that is asked strictly between two times, at which it may jump."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field

ROUNDINGS = 4  # of the time that a function sees: so that what it compares may be in other units, and was rounded


class Within:
    """Moves the times of every sample, `(B,)`, off the ends of a stretch by a few roundings, into it.

    The derivative by a time is that of the time that was asked for.

    Args:
        start: where the stretch of every sample begins, `(B,)`.
        stop: where it ends.
        dtype: of the times that the function sees, whose roundings count.
    """

    def __init__(self, start: Tensor, stop: Tensor, dtype: torch.dtype):
        start, stop = start.detach(), stop.detach()
        middle, rounding = torch.lerp(start, stop, 0.5), ROUNDINGS * torch.finfo(dtype).eps
        low, high = start.to(dtype), stop.to(dtype)
        low = torch.nextafter(low + rounding * low.abs(), torch.full_like(low, torch.inf))
        high = torch.nextafter(high - rounding * high.abs(), torch.full_like(high, -torch.inf))
        self.low, self.high = torch.minimum(low.to(start.dtype), middle), torch.maximum(high.to(start.dtype), middle)

    def __call__(self, t: Tensor) -> Tensor:
        """These times, inside."""
        inside = torch.minimum(torch.maximum(t, self.low), self.high)
        return t + (inside - t).detach() if torch.is_grad_enabled() else inside


class Between(Field):
    """A vector field within a stretch.

    Args:
        field: the field.
        within: the stretch.
    """

    def __init__(self, field: Field, within: Within):
        self.field, self.within = field, within
        self.raw = None
        self.parts = tuple(partial(_asked, part, within) for part in field.parts)

    @property
    def nfev(self) -> int:
        """How often the field was evaluated."""
        return self.field.nfev

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at `(t, y)`."""
        return self.field(self.within(t), y)


def _asked(part: Callable[[Tensor, Tensor], Tensor], within: Within, t: Tensor, y: Tensor) -> Tensor:
    return part(within(t), y)

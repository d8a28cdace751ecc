"""Positive numbers that are learned: as logarithms, or below a cap."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import is_number


def logarithm(owner: Any, name: str, value: Any) -> nn.Parameter:
    """The logarithm of an option, to be learned.

    Raises:
        ValueError: it is no finite number > 0.
    """
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{type(owner).__name__}({name}={value!r}): expected a finite number > 0")
    return nn.Parameter(torch.tensor(math.log(value)))


def below(owner: Any, name: str, value: Any, cap: float) -> nn.Parameter:
    """What `under(cap, ...)` makes of it the option's value, to be learned without ever reaching the cap.

    Raises:
        ValueError: it is no number between zero and the cap.
    """
    if not (is_number(value) and 0 < value < cap):
        raise ValueError(f"{type(owner).__name__}({name}={value!r}): expected a number in (0, {cap:g})")
    return nn.Parameter(torch.tensor(math.log(value / (cap - value))))


def under(cap: float, raw: Tensor) -> Tensor:
    """A number in `(0, cap)`."""
    return cap * torch.sigmoid(raw)

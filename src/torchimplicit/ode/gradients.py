"""Gradients of several tensors, some of which have none."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Gradients = list[Tensor | None]


def summed(totals: Gradients, more: Sequence[Tensor | None]) -> Gradients:
    """Sums of gradients, None being none."""
    return [
        each if total is None else total if each is None else total + each
        for total, each in zip(totals, more, strict=True)
    ]

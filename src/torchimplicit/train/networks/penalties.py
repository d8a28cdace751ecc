"""Penalties of a path, by one weight for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.nn import CNF, NeuralODE, PathPenalty


def paid(penalties: Sequence[PathPenalty], weight: float) -> Sequence[PathPenalty]:
    """The penalties, unless they weigh nothing: they cost time all the same."""
    return penalties if weight else ()


def weighted(layer: NeuralODE | CNF, weight: float) -> Tensor:
    """The mean penalties of the last path, weighted, a scalar."""
    total = sum((each.mean() for each in layer.penalties), torch.zeros(()))
    return weight * total

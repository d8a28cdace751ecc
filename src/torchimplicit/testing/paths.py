"""Paths with known solutions, small and in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.ode import Split, odeint


@dataclass(frozen=True)
class PathCase:
    """A field `f(t, y)` of states `(B, 2)`, whose path from every start is known.

    Attributes:
        name: for test identifiers.
        field: a function, or what else a solver takes for one.
        path: `(t, y0) -> y`, of times `(T,)` and starts at time zero `(B, 2)`, the states `(T, B, 2)`.
    """

    name: str
    field: Callable
    path: Callable[[Tensor, Tensor], Tensor]

    def start(self) -> Tensor:
        """Where its paths begin, `(3, 2)`."""
        return torch.tensor([[1.0, 1.0], [0.5, -0.4], [-0.8, 0.6]], dtype=torch.float64)

    def solve(self, ts: Tensor, y0: Tensor | None = None, **options: Any) -> Any:
        """The `PathSolution` at these times."""
        return odeint(self.field, self.start() if y0 is None else y0, ts, **options)


def _growth(t: Tensor, y: Tensor) -> Tensor:
    growth, decay = y.unbind(1)
    return torch.stack((growth * torch.cos(t.view(-1)), -2 * t.view(-1) * decay * decay.abs()), 1)


def _growth_path(t: Tensor, y0: Tensor) -> Tensor:
    growth, decay = y0.unbind(1)
    t = t.unsqueeze(1)
    return torch.stack((growth * torch.exp(torch.sin(t)), decay / (1 + decay.abs() * t * t)), 2)


def _explicit(t: Tensor, y: Tensor) -> Tensor:
    return _growth(t, y) * torch.tensor([1.0, 0.75], dtype=y.dtype)


def _implicit(t: Tensor, y: Tensor) -> Tensor:
    return _growth(t, y) * torch.tensor([0.0, 0.25], dtype=y.dtype)


def _oscillator(t: Tensor, y: Tensor) -> Tensor:
    q, p = y.unbind(1)
    return torch.stack((p, -q), 1)


def _oscillator_path(t: Tensor, y0: Tensor) -> Tensor:
    (q, p), t = y0.unbind(1), t.unsqueeze(1)
    return torch.stack((q * torch.cos(t) + p * torch.sin(t), p * torch.cos(t) - q * torch.sin(t)), 2)


GROWTH = PathCase("growth", _growth, _growth_path)
SPLIT = PathCase("growth, split in two", Split(_explicit, _implicit), _growth_path)
OSCILLATOR = PathCase("oscillator", _oscillator, _oscillator_path)

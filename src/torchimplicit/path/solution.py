"""A path as it is given back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.status import Solution
from torchimplicit.path.dense.dense_path import DensePath
from torchimplicit.path.report import PathReport


class Crossings(NamedTuple):
    """Where an event was met, its samples' crossings in the order that they were met in, as many rows as the most have.

    Attributes:
        time: when, `(K, B)`; NaN behind a sample's last one.
        state: the states there, like `y0` with the crossings in front, `(K, B, ...)`; the sample's last state behind.
        mask: which of them are crossings, bool `(K, B)`.
    """

    time: Tensor
    state: Any
    mask: Tensor


@dataclass(frozen=True)
class PathSolution(Solution):
    """A path at its output times, `(T, B, ...)`, and how it was solved.

    Attributes:
        ts: the output times, `(T, B)`, a sample's last one in place of its padding.
        event_time: when an event ended each sample's solve, `(B,)`; NaN where none did. None without events.
        event_state: the states there, like `y0`, or the last ones where none did. None without events.
        crossings: where each event was met, `Crossings` in the order of the events, those that ended a solve included.
        path: the solution as a function of time, with `dense=True`.
    """

    ts: Tensor = field(kw_only=True)
    event_time: Tensor | None = None
    event_state: Any = None
    crossings: tuple[Crossings, ...] = ()
    path: DensePath | None = None

    @property
    def mask(self) -> Tensor:
        """Which outputs are at times of their own, bool `(T, B)`; the others are padding and hold the last state."""
        return torch.cat((torch.ones_like(self.ts[:1], dtype=torch.bool), self.ts[1:] != self.ts[:-1]))

    @property
    def fired(self) -> Tensor | None:
        """Which samples' solves an event ended, bool `(B,)`; None without events."""
        assert isinstance(self.report, PathReport)
        return self.report.fired

    @property
    def event_index(self) -> Tensor | None:
        """Which event, by its place among them, ended each solve, int64 `(B,)`; -1 for none, None without events."""
        assert isinstance(self.report, PathReport)
        return self.report.event

"""Where the samples of a solve stand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.path.stepsize import UNCONFIRMED, History


@dataclass
class IntegratorState:
    """Where every sample stands; the tensors are `(B,)` but for `y`, `slope` `(B, n)` and `ts` `(T, B)`.

    Attributes:
        ts: the output times, increasing.
        t: time now.
        y: state now.
        h: size of the next step.
        least: the smallest step that may be tried, wherever the sample is.
        next: the place in `ts` of the next output time.
        status: `Status` values.
        running: whether it goes on.
        tried: steps, rejected ones included.
        rejected: rejected steps.
        ratio: error of the last step over its tolerance.
        slope: the slope at `(t, y)`, where that is known.
        history: errors of the last steps, where the controller wants them.
        most: the largest next step but one, by the error of the last step; infinite before there was one, None where
            steps are not chosen so.
        side: the signs of the events' conditions there, `(B, E)`.
        event: which event ended it, -1 for none.
        number: of the next step that moves somebody, from the start of the path.
        all_running: whether all go on.
        arrived: whether all have come to the last time in one step, and so past every output.
    """

    ts: Tensor
    t: Tensor
    y: Tensor
    h: Tensor
    least: Tensor
    next: Tensor
    status: Tensor
    running: Tensor
    tried: Tensor
    rejected: Tensor
    ratio: Tensor
    slope: Tensor | None = None
    history: History | None = None
    most: Tensor | None = None
    side: Tensor | None = None
    event: Tensor | None = None
    number: int = 0
    all_running: bool = True
    arrived: bool = False

    @classmethod
    def start(cls, ts: Tensor, y: Tensor) -> IntegratorState:
        """At the first time."""
        count = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        t = ts[0].clone()
        running = torch.ones_like(count, dtype=torch.bool)
        zero = torch.zeros_like(t)
        ratio = zero if t.dtype == y.dtype else zero.to(y.dtype)
        return cls(ts, t, y, zero, zero, count + 1, count, running, count, count, ratio)

    def begin(self, first: Tensor, way: Tensor, dt_min: float, remembers: bool) -> None:
        """Sets the first step, and the smallest that may be tried.

        Args:
            first: what the first one should be, `(B,)`.
            way: how far each sample has to go, `(B,)`.
            dt_min: the smallest step that the user allows.
            remembers: whether the controller wants the errors of the last steps.
        """
        eps = torch.finfo(self.t.dtype).eps
        first = torch.maximum(first, eps**4 * way)  # a field of 1e300 has no path worth following from zero
        self.least = (first * eps**2).clamp_min_(dt_min)
        self.history = History.start(self.y[:, 0]) if remembers else None
        self.h = torch.minimum(torch.maximum(first, self.smallest()), way)

    def smallest(self) -> Tensor:
        """The smallest step that every sample may try where it is, `(B,)`."""
        return torch.add(self.least, self.t.abs(), alpha=4 * torch.finfo(self.t.dtype).eps)

    def move(self, t: Tensor, y: Tensor, slope: Tensor | None) -> None:
        """One step further."""
        self.t, self.y, self.slope = t, y, slope
        self.number += 1

    def plan(self, h: Tensor, ratio: Tensor, accepted: Tensor) -> None:
        """Sets the size of the next step, `(B,)`.

        Args:
            h: what the error of the last step allows.
            ratio: that error over its tolerance.
            accepted: whether it was accepted.
        """
        self.h = h
        if self.most is not None:
            self.h, self.most = torch.minimum(h, self.most), UNCONFIRMED * h
        if self.history is not None:
            self.history = self.history.then(ratio, accepted)

    def take(self, rows: Tensor) -> IntegratorState:
        """Some samples alone."""
        some = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor) and name != "ts"}
        history = None if self.history is None else History(*(each[rows] for each in self.history))
        all_running = self.all_running or bool(self.running[rows].all())
        return IntegratorState(
            ts=self.ts[:, rows], history=history, number=self.number, all_running=all_running,
            arrived=False, **some,
        )  # fmt: skip

    def put(self, rows: Tensor, some: IntegratorState) -> None:
        """Puts back what `take` gave, once it has ended."""
        for name in ("t", "y", "h", "next", "status", "running", "tried", "rejected", "ratio"):
            setattr(self, name, getattr(self, name).index_copy(0, rows, getattr(some, name)))
        self.number = some.number
        if self.event is not None and some.event is not None:
            self.event = self.event.index_copy(0, rows, some.event)
        if self.side is not None and some.side is not None:
            self.side = self.side.index_copy(0, rows, some.side)

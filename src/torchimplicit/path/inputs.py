"""All that a solve depends on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Jumps:
    """Where paths jump.

    Attributes:
        times: when, as solvers count it, in any order, infinite where a sample has fewer, `(J, B)`.
        doses: what is added to the state then, `(J, B, n)`; None for nothing.
    """

    times: Tensor
    doses: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """What they consist of."""
        return [self.times] if self.doses is None else [self.times, self.doses]

    def take(self, rows: Tensor) -> Jumps:
        """Those of some samples."""
        return Jumps(self.times[:, rows], None if self.doses is None else self.doses[:, rows])


@dataclass(frozen=True)
class Inputs:
    """What a solve depends on.

    Attributes:
        y0: the start, `(B, n)`.
        ts: output times, `(T, B)`.
        tensors: the explicit tensors.
        event_tensors: those of the event's condition.
        jumps: where the path jumps; None for nowhere.
    """

    y0: Tensor
    ts: Tensor
    tensors: list[Tensor]
    event_tensors: list[Tensor]
    jumps: Jumps | None = None

    def everything(self) -> list[Tensor]:
        """All of them in a row."""
        jumps = [] if self.jumps is None else self.jumps.tensors()
        return [self.y0, self.ts, *self.tensors, *self.event_tensors, *jumps]

    def of(self, everything: list[Tensor]) -> Inputs:
        """The same with other tensors, in the order of `everything`."""
        y0, ts, *rest = everything
        count, last = len(self.tensors), len(self.tensors) + len(self.event_tensors)
        return Inputs(y0, ts, rest[:count], rest[count:last], None if self.jumps is None else Jumps(*rest[last:]))

"""The times of steps of one size, which end at every output time: a product each, never a sum of steps."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.path.solver import PathSolver


class Grid:
    """When the numbered steps of a solve end.

    From an output time to the next one there are as many steps of `dt` as fit, and a shorter one where they do not fill
    the gap: step `k` behind the time `a` ends at `a + k dt`. Roundings leave no sliver of a step.

    Args:
        ts: output times, increasing, the last one repeated where a sample has fewer, `(T, B)`.
        dt: size of the steps; None for one from each output time to the next.

    Attributes:
        counts: how many steps lead up to every output time, int64 `(T, B)`.
    """

    def __init__(self, ts: Tensor, dt: float | None):
        ts = ts if len(ts) > 1 else ts.expand(2, -1)
        self.ts, self.dt = ts, dt
        if dt is None:
            gaps = (ts[1:] > ts[:-1]).to(torch.float64)
        else:
            size = ts.abs()
            gaps = ts.diff(dim=0).to(torch.float64) / dt
            play = 1e-6 + torch.maximum(size[1:], size[:-1]).to(torch.float64) * (4 * torch.finfo(ts.dtype).eps / dt)
            gaps = torch.where(gaps > 0, (gaps - play.clamp_max(0.5)).ceil().clamp(1, 2**52), 0)
        self.counts = torch.nn.functional.pad(gaps.cumsum(0), (0, 0, 1, 0)).to(torch.int64)
        self._ends = self.counts[1:].T.contiguous()

    @property
    def landings(self) -> dict[int, int] | None:
        """Which output time the first so many steps lead to, of one sample; None where a time is repeated."""
        found = {number: place for place, number in enumerate(self.counts.flatten().tolist())}
        return found if len(found) == len(self.ts) else None

    def stops(self, first: int, count: int) -> Tensor:
        """When steps end, `(count, B)`; the last time for those behind it.

        Args:
            first: number of the first.
            count: of steps.
        """
        ts, counts = self.ts, self.counts
        numbers = torch.arange(first, first + count, device=ts.device).expand(ts.shape[1], -1).contiguous()
        place = torch.searchsorted(self._ends, numbers, right=True).T
        place = place.clamp_max(len(ts) - 2)  # of the output time before
        until = numbers.T + 1 - counts.gather(0, place)
        stops = ts.gather(0, place + 1)
        if self.dt is None:
            return stops
        within = ts.gather(0, place) + (until.to(torch.float64) * self.dt).to(ts.dtype)
        return torch.where(counts.gather(0, place + 1) > numbers.T + 1, within, stops)


def is_shared(ts: Tensor) -> bool:
    """Whether times `(T, B)` are seen to be the same for all samples."""
    return ts.shape[1] > 0 and (ts.shape[1] == 1 or ts.stride(1) == 0)


def require_fitting(solver: PathSolver, longest: float) -> None:
    """Refuses steps longer than the whole time, of the sample that has the longest.

    Raises:
        ValueError: they are.
    """
    dt = solver.dt_given
    if dt is not None and 0 < longest < dt * (1 - 1e-6):
        raise ValueError(
            f"{type(solver).__name__}(dt={dt}): got steps longer than the whole time of {longest:.6g}, "
            "expected shorter ones; try a smaller dt, or dt=None for one step between output times"
        )

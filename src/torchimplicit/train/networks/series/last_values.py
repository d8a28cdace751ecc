"""What was observed last of every variable, and next: the baselines that predict that nothing changes, or evenly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from torchimplicit.nn import Series


class Last(NamedTuple):
    """The last observations before some times.

    Attributes:
        value: `(B, T, C)`, 0 where there is none.
        since: the time since then, `(B, T, C)`; since the series' first time where there is none.
        ever: whether there is one.
    """

    value: Tensor
    since: Tensor
    ever: Tensor


def last_before(series: Series, ts: Tensor) -> Last:
    """The last observation of each variable before times `(B, T)`, NaN as padding."""
    times, ts = series.times.nan_to_num(torch.inf), ts.nan_to_num(torch.inf).to(series.times.dtype)
    numbers = torch.arange(1, times.shape[1] + 1, device=times.device).view(1, -1, 1) * series.mask
    latest = torch.nn.functional.pad(numbers.cummax(1).values, (0, 0, 1, 0))  # after so many times
    passed = torch.searchsorted(times.contiguous(), ts.contiguous())  # how many lie before
    which = latest.gather(1, passed.unsqueeze(2).expand(-1, -1, series.channels))
    ever, at = which > 0, (which - 1).clamp(min=0)
    moment = times.gather(1, at.flatten(1)).view_as(at).where(ever, times[:, :1].unsqueeze(2))
    since = (ts.unsqueeze(2) - moment).nan_to_num(0.0, posinf=0.0).to(series.values.dtype)
    return Last(series.values.gather(1, at).where(ever, 0.0), since, ever)


def last_values(series: Series, ts: Tensor, otherwise: Tensor) -> Tensor:
    """The last observation of each variable before times, `(B, T, C)`; `otherwise` `(C,)` where there is none."""
    last = last_before(series, ts)
    return last.value.where(last.ever, otherwise)


def straight_lines(series: Series, ts: Tensor, otherwise: Tensor) -> Tensor:
    """Each variable on straight lines between its observations, `(B, T, C)`, at times `(B, T)`, NaN as padding.

    Before the first and behind the last observation it is that one's value; `otherwise` `(C,)` where there is none.
    """
    times, ts = series.times.nan_to_num(torch.inf), ts.nan_to_num(torch.inf).to(series.times.dtype)
    count = times.shape[1]
    numbers = torch.arange(count, device=times.device).view(1, -1, 1)
    pad = torch.nn.functional.pad
    latest = pad(numbers.where(series.mask, -1).cummax(1).values, (0, 0, 1, 0), value=-1)
    coming = pad(numbers.where(series.mask, count).flip(1).cummin(1).values.flip(1), (0, 0, 0, 1), value=count)
    sides = []
    for table, right in ((latest, True), (coming, False)):
        place = torch.searchsorted(times.contiguous(), ts.contiguous(), right=right)
        sides.append(table.gather(1, place.unsqueeze(2).expand(-1, -1, series.channels)))
    before, after = sides
    one, other = before.where(before >= 0, after), after.where(after < count, before)
    ever = (one >= 0) & (one < count)
    one, other = one.clamp(0, count - 1), other.clamp(0, count - 1)
    start, end = (times.gather(1, at.flatten(1)).view_as(at) for at in (one, other))
    part = ((ts.unsqueeze(2) - start) / (end - start)).where(ever & (end > start), 0.0).to(series.values.dtype)
    first, last = (series.values.gather(1, at) for at in (one, other))
    return torch.lerp(first, last, part).where(ever, otherwise)


class Carry(nn.Module):
    r"""What the last observation of a variable says of it later: it falls back to the mean at a rate that is learned.

    $\sigma(k) e^{-r \Delta t} (x - m)$ with $k$ and $r > 0$ of each variable; nothing where there is no observation.

    Args:
        channels: how many variables there are.
    """

    def __init__(self, channels: int):
        """Nearly keeps the last values."""
        super().__init__()
        self.keep = nn.Parameter(torch.full((channels,), 2.0))
        self.rate = nn.Parameter(torch.full((channels,), -1.0))

    def forward(self, series: Series, ts: Tensor, mean: Tensor) -> Tensor:
        """The departure from the mean to expect at times `(B, T)`, `(B, T, C)`."""
        last = last_before(series, ts)
        kept = self.keep.sigmoid() * torch.exp(-softplus(self.rate) * last.since)
        return torch.where(last.ever, kept * (last.value - mean), 0.0)

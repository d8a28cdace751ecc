"""Paths through irregular series that drive a controlled equation: no later observation changes what lies before.

A controlled equation does not feel how fast its path is run through. So the clock of a path counts pieces, and time is
one of its channels: gaps that differ by orders of magnitude make no slope large.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torchimplicit.nn.latent.series import Series

ControlKind = Literal["hermite", "rectilinear"]


class Control(NamedTuple):
    """A path that is a cubic from each whole number on its clock to the next, with given values and slopes there.

    Attributes:
        values: at 0, 1, ..., `(B, K, channels)`.
        slopes: likewise.
    """

    values: Tensor
    slopes: Tensor

    def derivative(self, t: Tensor) -> Tensor:
        """The derivative `(B, channels)` at `t`, `(B, 1)`; zero where there is one value alone."""
        s, (x0, x1), (d0, d1) = self._piece(t)
        return 6 * s * (1 - s) * (x1 - x0) + (1 - s) * (1 - 3 * s) * d0 + s * (3 * s - 2) * d1

    def value(self, t: Tensor) -> Tensor:
        """The path `(B, channels)` at `t`, `(B, 1)`."""
        s, (x0, x1), (d0, d1) = self._piece(t)
        return x0 + s * s * (3 - 2 * s) * (x1 - x0) + s * (1 - s) * ((1 - s) * d0 - s * d1)

    def _piece(self, t: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Which part of its piece `t` has behind it, `(B, 1)`, and values and slopes at both ends, `(B, channels)`."""
        last = self.values.shape[1] - 1
        left = t.detach().floor().long().clamp(0, max(last - 1, 0))
        ends = torch.cat((left, (left + 1).clamp_max(last)), 1).unsqueeze(2).expand(-1, -1, self.values.shape[2])
        x0, x1 = self.values.gather(1, ends).unbind(1)
        d0, d1 = self.slopes.gather(1, ends).unbind(1)
        return t - left, (x0, x1), (d0, d1)


def channels_of(series: Series, counts: bool) -> Tensor:
    """What a path goes through, `(B, T, 1 + C)`, or `(B, T, 1 + 2 C)` with counts.

    Time; the values, the last one observed where there is none, 0 before the first; how often each was observed so far.
    What is to be known of a time is so known at that time, and not by interpolation from later ones.
    """
    place = torch.arange(series.mask.shape[1], device=series.mask.device).view(1, -1, 1)
    latest = torch.where(series.mask, place, -1).cummax(1).values
    held = series.values.gather(1, latest.clamp_min(0)).where(latest >= 0, 0.0)
    times = _filled(series.times).to(held.dtype).unsqueeze(2)
    seen = (series.mask.cumsum(1).to(held.dtype),) if counts else ()
    return torch.cat((times, held, *seen), 2)


def hermite(series: Series, counts: bool) -> Control:
    """Through all channels at the observations' times; the slope there is the way from those before.

    The first piece is straight. What is linear in time is a straight line, whatever the gaps.

    Source: J. Morrill, P. Kidger, L. Yang, T. Lyons, arXiv 2106.11028, section 3 (cubic Hermite splines with backward
    differences), with a clock that counts.
    """
    x = channels_of(series, counts)
    ways = x.diff(dim=1)
    first = ways[:, :1] if ways.shape[1] else torch.zeros_like(x)  # before the second time none is known
    return Control(x, torch.cat((first, ways), 1))


def rectilinear(series: Series, counts: bool) -> Control:
    """First along time, then to what is observed there, standing still at every corner; two pieces for each time.

    Source: P. Kidger, J. Morrill, J. Foster, T. Lyons, arXiv 2005.08926, and arXiv 2106.11028, section 3.
    """
    x = channels_of(series, counts)
    corners = torch.cat((x[:, 1:, :1], x[:, :-1, 1:]), 2)  # the next time, the last values
    values = x.new_empty(len(x), 2 * x.shape[1] - 1, x.shape[2])
    values[:, ::2], values[:, 1::2] = x, corners
    return Control(values, torch.zeros_like(values))


def on_clock(kind: ControlKind, series: Series, ts: Tensor) -> Tensor:
    r"""Where times `(B, T)` lie on a path's clock; NaN stays.

    Between two times: in proportion for "hermite". "rectilinear" goes along time by the smooth step
    $u = s^2 (3 - 2 s)$, whose inverse is $s = \frac12 - \sin(\frac13 \arcsin(1 - 2 u))$.
    """
    knots = series.times.masked_fill(series.times.isnan(), torch.inf).contiguous()
    place = (torch.searchsorted(knots, ts.nan_to_num(0.0).contiguous(), right=True) - 1).clamp_min(0)
    start = knots.gather(1, place)
    end = _filled(series.times).gather(1, (place + 1).clamp_max(knots.shape[1] - 1))
    part = torch.where(end > start, (ts - start) / torch.where(end > start, end - start, 1.0), 0.0)
    if kind == "rectilinear":
        part = torch.where(part > 0, 0.5 - torch.sin(torch.asin(1 - 2 * part) / 3), 0.0)  # at a time, exactly there
        place = 2 * place
    return torch.where(ts.isnan(), torch.nan, place + part)


def _filled(times: Tensor) -> Tensor:
    """Times with each series' last in place of the padding behind it."""
    last = times.nan_to_num(-torch.inf).amax(1, keepdim=True)
    return torch.where(times.isnan(), last, times)

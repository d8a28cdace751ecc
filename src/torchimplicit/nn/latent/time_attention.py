"""Attention from reference times to the times of observations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require_count
from torchimplicit.nn.latent.encoder import Context, Encoder
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.sums import blocks, neighbours_first

FAR = -60.0  # logarithm of the least weight beside the largest one: nothing is divided by zero in float32


class TimeAttention(Encoder):
    r"""Reads a series by attention in time: at each reference time, weighted means of what was observed of a variable.

    The weights follow from learned features of both times, some of them periodic, and are shared by all variables; each
    variable's are those of its own observations. A recurrent network then reads the means, from the last reference time
    to the first. No loop over observations: the cheapest encoder of long series on wide machines. What lies between
    reference times it sees only on average; they should be about as close as what matters.

    Source: S. N. Shukla, B. M. Marlin, arXiv 2101.10318 (mTAN), with their encoder's network over reference times.

    Args:
        channels: how many variables a series has.
        latent: dimension of the distribution that `encoder(series)` gives, `(B, latent)`.
        ts: reference times, increasing, `(R,)`, over the range of the series' times.
        width: of the recurrent network.
        features: of a time, 2 at least.
        heads: how many sets of weights.

    Raises:
        ValueError: reference times that do not increase.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> series = ti.nn.Series.of(
        ...     [(torch.rand(n).sort().values, torch.randn(n, 3)) for n in (5, 1)]
        ... )
        >>> ti.nn.TimeAttention(channels=3, latent=4, ts=torch.linspace(0, 1, 8))(
        ...     series
        ... ).mean.shape
        torch.Size([2, 4])
    """

    ts: Tensor

    def __init__(
        self, channels: int, latent: int, ts: Tensor | Sequence[float], width: int = 64, *, features: int = 32,
        heads: int = 1,
    ):  # fmt: skip
        """Makes the networks."""
        super().__init__(channels, latent, width)
        require_count("TimeAttention", features=features, least=2)
        require_count("TimeAttention", heads=heads)
        times = torch.as_tensor(ts, dtype=torch.get_default_dtype()) if not isinstance(ts, Tensor) else ts
        if times.dim() != 1 or not len(times) or not bool(times.isfinite().all() and (times.diff() > 0).all()):
            raise ValueError(f"TimeAttention(ts={ts}): expected increasing times (R,); try torch.linspace(0, 1, 16)")
        self.register_buffer("ts", times, persistent=False)
        span = float(times[-1] - times[0]) or 1.0
        self.heads = heads
        self.line = nn.Linear(1, 1)
        self.wave = nn.Linear(1, features - 1)
        with torch.no_grad():  # periods from four times the span down to the references' distance
            lowest, highest = math.tau / (4 * span), math.tau * len(times) / span
            self.wave.weight.copy_(torch.logspace(math.log10(lowest), math.log10(highest), features - 1).unsqueeze(1))
        self.query, self.key = nn.Linear(features, heads * features), nn.Linear(features, heads * features)
        self.mixed = nn.Linear(2 * channels * heads, width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def context(self, series: Series) -> Context:
        """See `Encoder.context`; at the reference times."""
        self.check(series)
        times = self.ts.to(series.values.dtype)
        means = torch.relu(self.mixed(self.means(times, series)))
        states = self.gru(means.flip(1))[0].flip(1)
        return Context(self.ts.expand(len(series), -1), states, states[:, 0])

    def means(self, times: Tensor, series: Series) -> Tensor:
        """Weighted means of each variable's observations, and the weight that they have among all times of the series.

        Args:
            times: `(R,)`.
            series: of `(B, T, C)`.

        Returns:
            `(B, R, heads * 2 * C)`.
        """
        dtype, present = series.values.dtype, blocks(series.present)[:, :, None, None]
        clock = blocks(series.times.nan_to_num(0.0).to(dtype))
        query = self.query(self._features(times)).unflatten(-1, (self.heads, -1)).movedim(-2, 0)
        key = self.key(self._features(clock)).unflatten(-1, (self.heads, -1)).movedim(-2, -3)
        scores = (query @ key.mT / math.sqrt(key.shape[-1])).masked_fill(~present, -math.inf)  # (B, K, heads, R, BLOCK)
        weights = (scores - scores.detach().amax((1, -1), keepdim=True)).clamp_min(FAR).exp() * present
        # A softmax over the observations of each variable, by one product: numerators, denominators, and of all times.
        kinds = (series.values, series.mask.to(dtype), series.present.to(dtype).unsqueeze(2))
        summed = neighbours_first((weights @ blocks(torch.cat(kinds, 2)).unsqueeze(2)).movedim(1, -1))
        sums, own, every = summed.split((series.channels, series.channels, 1), -1)
        mean = torch.where(own > 0, sums / torch.where(own > 0, own, 1.0), 0.0)
        return torch.cat((mean, own / every), -1).transpose(1, 2).flatten(2)

    def _features(self, times: Tensor) -> Tensor:
        """Learned features `(..., features)` of times."""
        t = times.unsqueeze(-1)
        return torch.cat((self.line(t), self.wave(t).sin()), -1)

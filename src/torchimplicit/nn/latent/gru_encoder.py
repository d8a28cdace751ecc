"""A recurrent network that is told the gaps in time."""

from __future__ import annotations

import torch
from torch import nn

from torchimplicit.core.options import require_count
from torchimplicit.nn.latent.encoder import Context, Encoder, last_of, read
from torchimplicit.nn.latent.series import Series


class GRUEncoder(Encoder):
    r"""Reads a series with a gated recurrent network: values, mask and the time since the last reading.

    The cheapest encoder, and a good first one. Between observations its state stands still, whatever the gap: what
    happens there it must learn from the number; `ODERNNEncoder` moves its state instead.

    Source: Y. Rubanova, R. T. Q. Chen, D. Duvenaud, arXiv 1907.03907, "RNN-VAE"; the gates K. Cho et al., arXiv
    1406.1078.

    Args:
        channels: how many variables a series has.
        latent: dimension of the distribution that `encoder(series)` gives, `(B, latent)`.
        width: of its state.
        layers: how many.
        reverse: read from the last time to the first, so that the distribution is of a path's start, and what is known
            at a time is what lies there and later; False reads in the order of time.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> series = ti.nn.Series.of(
        ...     [(torch.rand(n).sort().values, torch.randn(n, 3)) for n in (5, 1)]
        ... )
        >>> ti.nn.GRUEncoder(channels=3, latent=4)(series).mean.shape
        torch.Size([2, 4])
    """

    def __init__(self, channels: int, latent: int, width: int = 64, *, layers: int = 1, reverse: bool = True):
        """Makes the network."""
        super().__init__(channels, latent, width)
        require_count("GRUEncoder", layers=layers)
        self.reverse = reverse
        self.gru = nn.GRU(2 * channels + 1, width, layers, batch_first=True)

    def context(self, series: Series) -> Context:
        """See `Encoder.context`."""
        self.check(series)
        reading = read(series, self.reverse)
        states = self.gru(torch.cat((reading.inputs, reading.gaps.unsqueeze(2)), 2))[0]  # padding is read last
        return Context(series.times, reading.back(states), last_of(states, reading.present))

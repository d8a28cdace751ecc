"""An encoder that also sees what was observed last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from torchimplicit.nn import Context, Encoder, GRUEncoder, Series
from torchimplicit.train.networks.series.last_values import last_before


class SummaryEncoder(Encoder):
    """Reads series with a gated recurrent network, and beside it each variable's last value, its mean, and its age.

    What a variable was last is the best short guess of what it will be, and a recurrent state of some dozens of numbers
    learns only slowly to carry one for every variable.

    Args:
        channels: how many variables a series has.
        latent: dimension of the distribution.
        width: of the recurrent state.
        hidden: units of the layer beside the linear one that makes the distribution.
        dropout: on what is read.
    """

    def __init__(self, channels: int, latent: int, width: int = 64, hidden: int = 128, dropout: float = 0.0):
        """Makes the networks."""
        super().__init__(channels, latent, width + 4 * channels)
        self.gru = GRUEncoder(channels, latent, width, reverse=False)
        self.beside = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.width, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, 2 * latent),
        )  # fmt: skip

    def context(self, series: Series) -> Context:
        """See `Encoder.context`; what is known of a time is what lies there and before."""
        read = self.gru.context(series)
        return Context(read.times, read.values, torch.cat((read.whole, _summary(series)), 1))

    def start(self, context: Context) -> Normal:
        """See `Encoder.start`."""
        mean, std = (self.head(context.whole) + self.beside(context.whole)).chunk(2, -1)
        return Normal(mean, nn.functional.softplus(std) + 1e-6, validate_args=False)


def _summary(series: Series) -> Tensor:
    """Each variable's last value, mean, whether it was observed, and how long ago, `(B, 4 C)`."""
    end = torch.nextafter(series.times.nan_to_num(-torch.inf).amax(1, keepdim=True), series.times.new_tensor(torch.inf))
    last, since, ever = (each[:, 0] for each in last_before(series, end))
    mean = series.values.sum(1) / series.mask.sum(1).clamp(min=1)
    return torch.cat((last, mean, ever.to(last.dtype), since), 1)

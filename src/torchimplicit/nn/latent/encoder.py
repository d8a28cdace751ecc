"""What encoders of series have in common: what was read, when, and the distribution that follows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus

from torchimplicit.core.options import require_count, require_dtype
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.series_checks import refuse, words

LEAST = 1e-6  # a standard deviation


class Context(NamedTuple):
    """What an encoder has read of every series.

    Attributes:
        times: `(B, K)`, NaN as padding.
        values: what was read up to each of them, `(B, K, width)`: read backward, of all that lies there and later.
        whole: what was read of all, `(B, width)`.
    """

    times: Tensor
    values: Tensor
    whole: Tensor


class Encoder(nn.Module):
    """Base of the encoders: a subclass makes the `context`, the base a normal distribution of it.

    Args:
        channels: how many variables a series has.
        latent: dimension of the distribution.
        width: features of the context.
    """

    def __init__(self, channels: int, latent: int, width: int):
        """Makes the last layer."""
        super().__init__()
        require_count(type(self).__name__, channels=channels, latent=latent, width=width)
        self.channels, self.latent, self.width = channels, latent, width
        self.head = nn.Linear(width, 2 * latent)

    def context(self, series: Series) -> Context:
        """What is read of every series, and when."""
        raise NotImplementedError

    def start(self, context: Context) -> Normal:
        """The distribution `(B, latent)` of where a path starts, at the first time of every series."""
        mean, std = self.head(context.whole).chunk(2, -1)
        return Normal(mean, softplus(std) + LEAST, validate_args=False)  # what is NaN the solve will tell

    def forward(self, series: Series) -> Normal:
        """`start` of the `context`.

        Raises:
            ValueError: another number of channels, or a series without observations.
        """
        return self.start(self.context(series))

    def check(self, series: Series) -> None:
        """Refuses what cannot be read.

        Raises:
            ValueError: another number of channels, or a series without observations.
            TypeError: no series, or of another dtype than the weights.
        """
        check_series(type(self).__name__, series, self.channels, self)


def check_series(owner: str, series: Series, channels: int, reader: nn.Module) -> None:
    """Refuses what cannot be read.

    Raises:
        TypeError: no `Series`, or of another dtype than the reader's weights.
        ValueError: another number of channels, or a series without observations.
    """
    check_observed(owner, series, reader)
    if series.channels != channels:
        raise ValueError(
            f"{owner}: got series of {series.channels} channels, expected {channels}; try "
            f"{owner}(channels={series.channels})"
        )


def check_observed(owner: str, series: Series, reader: nn.Module) -> None:
    """Refuses series of which nothing was observed.

    Raises:
        TypeError: no `Series`, or of another dtype than the reader's weights.
        ValueError: there are such.
    """
    if not isinstance(series, Series):
        raise TypeError(f"{owner}: got {words(series)}, expected a Series; try nn.Series.of([(times, values), ...])")
    require_dtype(owner, series.values, reader)
    seen = series.mask.flatten(1).any(1)
    if not bool(seen.all()):
        refuse(int((~seen).nonzero()[0]), "no observations", "at least one to read", "to leave it out")


class Reading(NamedTuple):
    """Series in the order in which they are read, each from the left.

    Attributes:
        inputs: values and mask, `(B, T, 2 C)`.
        gaps: the time since what was read before, `(B, T)`, 0 for the first.
        present: where there is something to read, `(B, T)`.
        order: the place of what is read, `(B, T)`; also the place in the reading of what stands there.
    """

    inputs: Tensor
    gaps: Tensor
    present: Tensor
    order: Tensor

    def back(self, states: Tensor) -> Tensor:
        """States `(B, T, H)` of the reading in the order of the series."""
        return states.gather(1, self.order.unsqueeze(2).expand_as(states))


def read(series: Series, reverse: bool) -> Reading:
    """Series in the order of time, or against it."""
    present, count = series.present, series.lengths.unsqueeze(1)
    place = torch.arange(present.shape[1], device=present.device).expand_as(present)
    order = torch.where(present, count - 1 - place, place) if reverse else place
    inputs = torch.cat((series.values, series.mask.to(series.values.dtype)), 2)
    inputs = inputs.gather(1, order.unsqueeze(2).expand_as(inputs)) if reverse else inputs
    times = series.times.gather(1, order)
    gaps = torch.diff(times, dim=1, prepend=times[:, :1]).abs().nan_to_num(0.0)
    return Reading(inputs, gaps.to(series.values.dtype), present, order)


def last_of(states: Tensor, present: Tensor) -> Tensor:
    """The states `(B, H)` at the last that was read, of all `(B, T, H)`."""
    last = (present.sum(1) - 1).clamp_min(0)
    return states[torch.arange(len(states), device=states.device), last]

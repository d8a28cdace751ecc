"""What networks of irregular series have in common: standard units inside, those of the data outside."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require
from torchimplicit.nn import GaussianLikelihood, Series

WEIGHTINGS = ("variables", "observations")


class BalancedLikelihood(GaussianLikelihood):
    """Normal errors whose log-densities are averaged over the observations of a variable, then over the variables.

    A variable without observations counts with 0. It is no log-density of all observations, but what the published
    code of latent ODEs takes for one: a variable that is measured once weighs as much as one measured every hour.

    Source: Y. Rubanova, R. T. Q. Chen, D. Duvenaud, arXiv 1907.03907, the published code.
    """

    def forward(self, output: Tensor, target: Series) -> Tensor:
        """That average for every series, `(..., B)`."""
        return (self.each(output, target).sum(-2) / target.mask.sum(1).clamp(min=1)).mean(-1)


class Units(nn.Module):
    """Between the units of the data and those in which every variable has about mean 0 and deviation 1.

    Args:
        channels: how many variables there are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        """Takes the units of the data for those, until it has settled."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def settle(self, series: Series) -> None:
        """Takes mean and deviation from series; 1 is the deviation of what never changes, or was not observed."""
        count = series.mask.sum((0, 1)).clamp(min=1)
        mean = series.values.double().sum((0, 1)) / count
        std = (((series.values - mean) * series.mask).square().sum((0, 1)) / count).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(std.where(std > 1e-6, 1.0))

    def standard(self, series: Series) -> Series:
        """Series in the units of a network, what lies ten deviations out drawn in."""
        return Series(series.times, ((series.values - self.mean) / self.std).clamp(-10, 10), series.mask)

    def forward(self, x: Tensor) -> Tensor:
        """What a network says, `(..., C)`, in the units of the data."""
        return self.mean + self.std * x


class Costs(NamedTuple):
    """What training makes small.

    Attributes:
        series: of every series, `(B,)`.
        logit: of every series' label, `(B,)`; None where a network has none.
    """

    series: Tensor
    logit: Tensor | None


class SeriesNetwork(nn.Module):
    """Base of the networks of series; they work in standard units, see `Units`, and answer in those of the data.

    Args:
        channels: how many variables a series has.
        std: of the normal errors around a prediction, in the data's units.
        weighting: "variables": `BalancedLikelihood`; "observations": all observations weigh the same.
    """

    def __init__(self, channels: int, std: float = 0.01, weighting: str = "variables"):
        """Keeps the options."""
        super().__init__()
        self.channels, self.weighting = channels, weighting
        require(self, "weighting", weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}")
        self.likelihood = BalancedLikelihood(std) if weighting == "variables" else GaussianLikelihood(std)
        self.units = Units(channels)

    def forward(self, seen: Series) -> Tensor:
        """What to expect at the times that are seen, `(B, T, C)`."""
        return self.predict(seen, seen.times)

    def predict(self, seen: Series, ts: Tensor) -> Tensor:
        """What to expect at times `(B, T)`, NaN as padding: `(B, T, C)`."""
        raise NotImplementedError

    def cost(self, seen: Series, target: Series, kl_weight: float = 1.0) -> Costs:
        """What training makes small; `kl_weight` is that of a distribution's divergence, if there is one."""
        return Costs(-self.likelihood(self.predict(seen, target.times), target), None)


def layers(*widths: int, activation: type[nn.Module] = nn.Tanh, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with activations between them."""
    parts: list[nn.Module] = []
    for before, behind in pairwise(widths):
        parts += [nn.Linear(before, behind), activation(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*parts[: -2 if dropout else -1])


def with_times(seen: Series, ts: Tensor) -> tuple[Series, Tensor]:
    """Series that also have the times `(B, T)`, without observations there; and where these stand, `(B, T)`."""
    times = torch.cat((seen.times, ts.to(seen.times.dtype)), 1)
    order = times.sort(dim=1, stable=True).indices
    ordered = times.gather(1, order)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]) & ~ordered[:, 1:].isnan()
    place = torch.zeros_like(order).scatter(1, order, new.cumsum(1) - 1)  # of padding: the last time's
    count = int(place.max()) + 1
    rows = torch.arange(len(seen), device=order.device).unsqueeze(1)
    own, asked = place.split((seen.times.shape[1], ts.shape[1]), 1)
    merged = times.new_full((len(seen), count), torch.nan)
    present = ~times.isnan()
    merged[rows.expand_as(place)[present], place[present]] = times[present]
    values, mask = (part.new_zeros(len(seen), count, seen.channels) for part in (seen.values, seen.mask))
    here = seen.present
    values[rows.expand_as(own)[here], own[here]] = seen.values[here]
    mask[rows.expand_as(own)[here], own[here]] = seen.mask[here]
    return Series(merged, values, mask), asked

"""What models of latent paths have in common: starts that are drawn, and bounds of the evidence."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from torchimplicit.core.options import is_number, require_count
from torchimplicit.nn.latent.draws import Seed, normals
from torchimplicit.nn.latent.encoder import Encoder
from torchimplicit.nn.latent.likelihood import Likelihood
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.series_checks import words
from torchimplicit.nn.latent.times import folded
from torchimplicit.nn.layer import ImplicitLayer

Bound = Literal["elbo", "iwae"]


class NormalPrior(nn.Module):
    """Where paths start before anything is observed: independent normals.

    Args:
        latent: dimension.
        mean: of all.
        std: of all, > 0.
        learned: whether to start there and learn every dimension's.
    """

    mean: Tensor
    log_std: Tensor

    def __init__(self, latent: int, mean: float = 0.0, std: float = 1.0, learned: bool = False):
        """Keeps means and logarithms of standard deviations."""
        super().__init__()
        require_count("NormalPrior", latent=latent)
        if not (is_number(std) and 0 < std < math.inf):
            raise ValueError(f"NormalPrior(std={std!r}): expected a number > 0")
        for name, value in (("mean", mean), ("log_std", math.log(std))):
            known = torch.full((latent,), value)
            if learned:
                self.register_parameter(name, nn.Parameter(known))
            else:
                self.register_buffer(name, known)

    def forward(self, like: Tensor) -> Normal:
        """The distribution, `(latent,)`, in the dtype of a tensor."""
        return Normal(self.mean.to(like.dtype), self.log_std.exp().to(like.dtype), validate_args=False)


class LatentPath(ImplicitLayer):
    """Base of the models of series by paths that nobody sees: an encoder, what moves, a decoder, a likelihood.

    Args:
        encoder: gives the distribution of the start.
        decoder: from states `(..., latent)` to what the likelihood takes, `(..., C)`.
        likelihood: of the observations.
        start: the distribution of the start before anything is observed.
    """

    def __init__(self, encoder: Any, decoder: Any, likelihood: Any, start: Any):
        """Keeps the parts."""
        super().__init__()
        name = type(self).__name__
        for word, part, kind in (("encoder", encoder, Encoder), ("likelihood", likelihood, Likelihood)):
            if not isinstance(part, kind):
                got = part.__name__ + ", a class" if isinstance(part, type) else f"a {type(part).__name__}"
                usual = "GRUEncoder(channels=3, latent=4)" if word == "encoder" else "GaussianLikelihood(std=0.1)"
                raise TypeError(f"{name}({word}=...): got {got}, expected a {kind.__name__}; try nn.{usual}")
        for word, part in (("decoder", decoder), ("start", start)):
            if not callable(part):
                raise TypeError(f"{name}({word}=...): got a {type(part).__name__}, expected a module")
        self.encoder, self.decoder, self.likelihood, self.start = encoder, decoder, likelihood, start
        self.kl: Tensor | None = None
        self.starts: Tensor | None = None

    def forward(self, series: Series, ts: Tensor, samples: int = 1, *, seed: Seed = None) -> Tensor:
        """What to expect at times `ts`, by draws of what is not known: `(samples, B, T, C)`; later, a forecast.

        Args:
            series: what is known.
            ts: `(T,)`, or `(B, T)` with NaN as padding, whose outputs are those of the last time; none before a series'
                first one.
            samples: how many draws.
            seed: of the draws: an int; or int64 `(B,)`, one a series, which then draws the same in any batch.
        """
        return self.likelihood.mean(self.decoder(self.paths(series, ts, samples, seed=seed)))

    def paths(self, series: Series, ts: Tensor, samples: int = 1, *, seed: Seed = None) -> Tensor:
        """The latent paths at times `ts`, `(samples, B, T, latent)`; arguments as those of a call."""
        raise NotImplementedError

    def draw_starts(self, q: Normal, seeds: Tensor, samples: int) -> Tensor:
        """Starts `(samples * B, latent)`, kept as `starts`, `(samples, B, latent)`."""
        mean, std = folded((q.mean, q.stddev), samples)
        z = mean + std * normals(seeds, mean)
        self.starts = z.unflatten(0, (samples, -1))
        return z

    def start_cost(self, q: Normal, bound: Bound) -> Tensor:
        """What the drawn starts cost: the divergence from the prior `(B,)`, or the logarithm of densities `(S, B)`."""
        p = self.start(q.mean)
        assert self.starts is not None
        if bound == "elbo":
            return torch.distributions.kl_divergence(q, p).sum(-1)
        return (q.log_prob(self.starts) - p.log_prob(self.starts)).sum(-1)

    def bounded(self, output: Tensor, target: Series, cost: Tensor, kl_weight: float | Tensor, bound: Bound) -> Tensor:
        """The bound `(B,)` of the evidence by outputs `(S, B, T, C)` that cost `(B,)` or `(S, B)`; keeps `kl`."""
        weights = self.likelihood(output, target) - kl_weight * cost
        self.kl = cost.expand_as(weights).mean(0)
        return weights.mean(0) if bound == "elbo" else weights.logsumexp(0) - math.log(len(weights))

    def check_target(self, series: Series, target: Series) -> None:
        """Refuses what is no batch of observations of the same series.

        Raises:
            TypeError: no `Series`.
            ValueError: another number of series.
        """
        for word, part in (("series", series), ("target", target)):
            if not isinstance(part, Series):
                raise TypeError(f"{type(self).__name__}.elbo({word}=...): got {words(part)}, expected a Series")
        if len(series) != len(target):
            raise ValueError(
                f"{type(self).__name__}.elbo: got {len(target)} series as the target of {len(series)}, expected as many"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the graphs of the last call, which can be neither."""
        kept = {name: getattr(self, name) for name in ("kl", "starts")}
        return {**self.__dict__, **{name: None if value is None else value.detach() for name, value in kept.items()}}


def check_bound(owner: str, samples: int, bound: str) -> None:
    """Refuses what is no number of samples, and no bound.

    Raises:
        ValueError: one of them.
    """
    require_count(owner, samples=samples)
    if bound not in ("elbo", "iwae"):
        raise ValueError(f"{owner}(bound={bound!r}): expected 'elbo' or 'iwae'")

"""What was observed, given what a model says: log-densities that leave out what is missing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, Poisson, constraints

from torchimplicit.core.options import is_number
from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.series_checks import refuse
from torchimplicit.nn.latent.sums import neighbours_first


class Likelihood(nn.Module):
    """Base of the likelihoods of observations, which are independent given what a decoder says: `distribution`."""

    def distribution(self, output: Tensor) -> Distribution:
        """The distribution of observations, given a decoder's output, `(..., B, T, C)`; each on its own."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """What to expect, `(..., B, T, C)`."""
        return self.distribution(output).mean

    def each(self, output: Tensor, target: Series) -> Tensor:
        """The log-density of every observation, 0 where there is none: `(..., B, T, C)`.

        Raises:
            ValueError: outputs of another shape, or observations that cannot be: counts below zero, for one.
        """
        if output.shape[-3:] != target.values.shape:
            raise ValueError(
                f"{type(self).__name__}: got outputs {tuple(output.shape)} for values {tuple(target.values.shape)}, "
                "expected (..., B, T, C) with the same B, T and C; try a decoder with an output for every channel"
            )
        distribution = self.distribution(output)
        _check_possible(distribution, target)
        return torch.where(target.mask, distribution.log_prob(target.values), 0.0)

    def forward(self, output: Tensor, target: Series) -> Tensor:
        """The log-density of all observations of every series, `(..., B)`."""
        return neighbours_first(self.each(output, target).sum(-1))


class GaussianLikelihood(Likelihood):
    """Observations with normal errors around a decoder's output.

    A standard deviation that is fixed far below the data's own errors makes a model fit noise; a learned one tells
    what is left unexplained. Not for what has outliers, or is no number on a line.

    Args:
        std: the standard deviation, of all channels or of each, `(C,)`.
        learned: whether to start there and learn its logarithm.

    Raises:
        ValueError: not positive.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> series = ti.nn.Series.of(
        ...     [(torch.tensor([0.0, 1.0]), torch.tensor([[1.0], [torch.nan]]))]
        ... )
        >>> likelihood = ti.nn.GaussianLikelihood(std=1.0)
        >>> likelihood(torch.zeros(1, 2, 1), series)
        tensor([-1.4189])
    """

    log_std: Tensor

    def __init__(self, std: float | Tensor = 0.01, learned: bool = False):
        """Keeps the standard deviation's logarithm."""
        super().__init__()
        known = (
            std.detach().clone() if isinstance(std, Tensor) else torch.as_tensor(std if is_number(std) else math.nan)
        )
        known = known.to(torch.get_default_dtype()) if not known.is_floating_point() else known
        if known.dim() > 1 or not bool(((known > 0) & known.isfinite()).all()):
            raise ValueError(f"GaussianLikelihood(std={std!r}): expected a number > 0, or one for each channel, (C,)")
        if learned:
            self.log_std = nn.Parameter(known.log())
        else:
            self.register_buffer("log_std", known.log())

    @property
    def std(self) -> Tensor:
        """The standard deviation, `()` or `(C,)`."""
        return self.log_std.exp()

    def distribution(self, output: Tensor) -> Distribution:
        """See `Likelihood.distribution`."""
        return Normal(output, self.std.to(output.dtype), validate_args=False)


class BernoulliLikelihood(Likelihood):
    """Observations that are 0 or 1, by a decoder's logits."""

    def distribution(self, output: Tensor) -> Distribution:
        """See `Likelihood.distribution`."""
        return Bernoulli(logits=output, validate_args=False)


class PoissonLikelihood(Likelihood):
    """Observations that are counts, by the logarithms of their rates from a decoder."""

    def distribution(self, output: Tensor) -> Distribution:
        """See `Likelihood.distribution`."""
        return Poisson(output.exp(), validate_args=False)


def _check_possible(distribution: Distribution, target: Series) -> None:
    """Refuses observations that cannot be, by their series' number."""
    support: Any = distribution.support
    if support is constraints.real:  # a Series is finite
        return
    impossible = target.mask & ~support.check(target.values)
    if bool(impossible.any()):
        row, at, channel = impossible.nonzero()[0].tolist()
        value, kind = float(target.values[row, at, channel]), type(distribution).__name__
        refuse(row, f"{value:g} in channel {channel}", f"what a {kind} can be", "another likelihood")

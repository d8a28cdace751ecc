"""The loss of a denoiser: one, whose cases are weights."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchimplicit.nn.score.prediction import Prediction, coefficients

Weighting = Literal["eps", "x", "v", "edm", "flow", "likelihood"]


def denoising_errors(
    denoiser: Any, x: Tensor, label: Tensor | None, weighting: Weighting, levels: Any = None
) -> Tensor:
    r"""$w(s)\, |D(x + s\, \varepsilon, s) - x|^2 / n$ at a noise level and a noise drawn for every sample, `(B,)`.

    See `Denoiser.loss`.
    """
    least, most = (math.log(level) for level in denoiser.schedule.levels)
    if levels is None:
        log_s = least + (most - least) * torch.rand(len(x), dtype=x.dtype, device=x.device)
        density = torch.full_like(log_s, 1 / (most - least))
    else:
        drawn = levels.sample((len(x),))
        log_s, density = drawn.to(x), levels.log_prob(drawn).to(x).exp()
    s = log_s.exp().view(-1, *(1,) * (x.dim() - 1))
    found = denoiser.denoise(x + s * torch.randn_like(x), s, label)
    error = (found - x).square().flatten(1).mean(1)
    if weighting == "likelihood":
        inside = (log_s >= least) & (log_s <= most)
        return torch.where(inside, error * (-2 * log_s).exp() / density, 0.0)
    out = coefficients(weighting, s.flatten(), denoiser.std)[1]
    return error / out.square()


def check_weighting(weighting: Any, prediction: Prediction, levels: Any) -> Weighting:
    """The weights, those of the prediction where none are asked for.

    Raises:
        ValueError: another word.
        TypeError: `levels` is no distribution.
    """
    if weighting is not None and weighting not in get_args(Weighting):
        expected = ", ".join(map(repr, get_args(Weighting)))
        raise ValueError(f"Denoiser.loss(weighting={weighting!r}): expected None or one of {expected}")
    known = callable(getattr(levels, "sample", None)) and hasattr(levels, "log_prob") and not isinstance(levels, type)
    if levels is not None and not known:
        raise TypeError(
            f"Denoiser.loss(levels={levels!r}): expected a distribution of log s, of one number; try "
            "torch.distributions.Normal(-1.2, 1.2), that of EDM, or None for all levels alike"
        )
    return prediction if weighting is None else weighting

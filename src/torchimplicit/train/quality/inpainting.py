"""The hidden half of images, drawn by two ways of knowing the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from torchimplicit.imaging import Inpainting
from torchimplicit.nn import Denoiser, Guidance, PredictorCorrector, Replacement
from torchimplicit.train.quality.features import FeatureNetwork


@dataclass(frozen=True)
class Inpainted:
    """Images of which one half was drawn.

    Attributes:
        images: `(B, *shape)`.
        evaluations: of the network, that they took.
    """

    images: Tensor
    evaluations: int


def upper_half(shape: torch.Size) -> Tensor:
    """What is seen where the lower half is hidden, bool, of images `(C, H, W)` or of such row by row, `(n,)`."""
    rows = shape[0] if len(shape) == 1 else shape[-2]
    seen = torch.arange(rows) < rows // 2
    return seen if len(shape) == 1 else seen[:, None].expand(shape).clone()


def inpaint(model: Denoiser, images: Tensor, steps: int = 34, seed: int = 0) -> dict[str, Inpainted]:
    """Draws the lower half of images, of no class, given the upper one, with about as many evaluations in either way.

    Args:
        model: the prior.
        images: as the model has them, `(B, *shape)`.
        steps: of the predictor-corrector sampler of guidance, of three evaluations each.
        seed: of the noise.

    Returns:
        "guidance", by `nn.Guidance`, and "replacement", by `nn.Replacement`.
    """
    seen = Inpainting(upper_half(model.shape)).to(images.device)
    y, count = seen.A(images), len(images)
    guided = PredictorCorrector(steps=steps, corrections=2)
    found = {}
    with torch.no_grad():
        drawn = model.sample(count, guided, seed=seed, condition=Guidance(seen, y))
        found["guidance"] = Inpainted(drawn, model.report.nfev)
        drawn = model.sample(count, Replacement(operator=seen, y=y, steps=3 * steps), seed=seed)
        found["replacement"] = Inpainted(drawn, model.report.nfev)
    return found


def hidden_psnr(found: Tensor, truth: Tensor) -> float:
    """The peak signal-to-noise ratio of the hidden half in decibels, of all images together.

    Args:
        found: `(B, *shape)` in [-1, 1].
        truth: likewise.
    """
    hidden = ~upper_half(truth.shape[1:]).to(truth.device)
    return float(10 * torch.log10(4 / (found - truth)[:, hidden].square().mean()))


def inpainting_figures(
    draws: Sequence[dict[str, Tensor]], truth: Tensor, labels: Tensor, features: FeatureNetwork
) -> dict[str, float]:
    """How well hidden halves were drawn: by each way in the mean of the draws, and what guidance gains.

    Args:
        draws: images `(B, *shape)` in [-1, 1] by either way of `inpaint`, all of the same images.
        truth: those images.
        labels: their classes, `(B,)`.
        features: the classifier that looks at what was drawn.

    Returns:
        "psnr/guidance", "agreement/guidance", the share in which the classifier sees the class, the same of
        "replacement", "psnr/gain" and "agreement/gain", of guidance over replacement, and of several draws
        "psnr/gain_spread" and "agreement/gain_spread", the standard deviations of these gains over the draws.
    """
    found: dict[str, float] = {}
    for figure in ("psnr", "agreement"):
        reached = {name: [_reached(figure, draw[name], truth, labels, features) for draw in draws] for name in draws[0]}
        gains = [one - other for one, other in zip(reached["guidance"], reached["replacement"], strict=True)]
        found |= {f"{figure}/{name}": fmean(values) for name, values in reached.items()}
        found[f"{figure}/gain"] = fmean(gains)
        if len(gains) > 1:
            found[f"{figure}/gain_spread"] = stdev(gains)
    return found


def _reached(figure: str, drawn: Tensor, truth: Tensor, labels: Tensor, features: FeatureNetwork) -> float:
    if figure == "psnr":
        return hidden_psnr(drawn, truth)
    with torch.no_grad():
        return float((features.classify(drawn) == labels).double().mean())

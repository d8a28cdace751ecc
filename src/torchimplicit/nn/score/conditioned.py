"""A denoiser with what it is conditioned on: a class, a measurement."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require_instance
from torchimplicit.nn.score.guidance import Guidance
from torchimplicit.nn.score.samplers.base import Conditioned


class OfClass(Conditioned):
    r"""Classifier-free guidance: $D = D_\emptyset + w\, (D_c - D_\emptyset)$.

    A weight `w` of 1 is the class itself, at one evaluation; above 1 samples are more of the class than the class is,
    and less varied: the law is no longer that of the data.

    Source: J. Ho, T. Salimans, arXiv 2207.12598, equation 6, whose weight is `w - 1`.

    Args:
        denoiser: the model, a `Denoiser`.
        label: class of every sample, `(B,)`; None without classes.
        weight: `w`.
    """

    def __init__(self, denoiser: Any, label: Tensor | None, weight: float = 1.0):
        super().__init__()
        self.denoiser, self.label, self.weight = denoiser, label, weight

    def forward(self, u: Tensor, s: Tensor) -> Tensor:
        """See `Conditioned.forward`."""
        self.calls += 1
        found = self.denoiser.denoise(u, s, self.label)
        if self.weight == 1 or self.label is None:
            return found
        self.calls += 1
        free = self.denoiser.denoise(u, s, torch.full_like(self.label, self.denoiser.classes))
        return free + self.weight * (found - free)


def conditioned(denoiser: Any, label: Tensor | None, guidance: Any, condition: Any, like: Tensor) -> Conditioned:
    """The denoiser that `Denoiser.sample` asks for.

    Args:
        denoiser: the model.
        label: class of every sample, `(B,)`; None without classes.
        guidance: how much of the class.
        condition: what was measured of each sample, a `Guidance`; None for nothing.
        like: samples, `(B, *shape)`.

    Raises:
        TypeError: the condition is none.
        ValueError: the guidance is no number, or not 1 without a class, or the condition does not fit.
    """
    if not is_number(guidance) or (label is None and guidance != 1):
        raise ValueError(f"Denoiser.sample(guidance={guidance!r}): expected a number, and 1 without classes")
    if label is not None and guidance != 1 and bool((label == denoiser.classes).all()):
        raise ValueError(f"Denoiser.sample(guidance={guidance!r}): got no class to go to, expected one; try label=0")
    if label is not None and guidance != 1 and not denoiser.label_dropout:
        warnings.warn(
            f"Denoiser.sample(guidance={guidance!r}): got a model with label_dropout=0, whose loss hides no label: "
            "unless told otherwise, its network has never seen the class of no class, which guidance starts from. Try "
            "guidance=1, or a training with label_dropout=0.1.",
            stacklevel=3,
        )
    found = OfClass(denoiser, label, guidance)
    if condition is None:
        return found
    require_instance("condition", condition, Guidance, "ti.nn.Guidance(operator, y, std)")
    return condition.around(found, like, denoiser.std)

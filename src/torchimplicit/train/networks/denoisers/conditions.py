"""What denoisers are told beside the sample: a time, or level of noise, and a class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require, require_count


class ConditionEmbedding(nn.Module):
    r"""A vector of a time and a class: sines and cosines of the time, a learned vector a class, two dense layers.

    The frequencies are fixed, $\pi / 2 \cdot 2^k$ for $k = 0, 1, \dots$: the time, or the logarithm of the noise, is
    expected to be of about unit size.

    Args:
        width: of the vector.
        classes: how many there are; None where samples have none.
        frequencies: of the time.
    """

    octaves: Tensor

    def __init__(self, width: int, classes: int | None = None, frequencies: int = 6):
        """Draws the weights."""
        super().__init__()
        self.width, self.classes, self.frequencies = width, classes, frequencies
        require_count(self, "width", "frequencies")
        require(self, "classes", classes is None or classes >= 1, "an integer >= 1, or None")
        self.register_buffer("octaves", math.pi / 2 * 2.0 ** torch.arange(frequencies), persistent=False)
        self.time = nn.Linear(2 * frequencies + 1, width)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)  # the last one: of no class
        self.mix = nn.Linear(width, width)

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The vector `(B, width)`.

        Args:
            t: B numbers, of any shape.
            label: classes `(B,)`, `classes` for a sample of none; None for all of none.
        """
        t = t.reshape(-1, 1)
        angle = t * self.octaves
        found = self.time(torch.cat((t, angle.sin(), angle.cos()), 1))
        if self.label is not None:
            none = torch.full((len(t),), self.label.num_embeddings - 1, device=t.device)
            found = found + self.label(none if label is None else label)
        return nn.functional.silu(self.mix(nn.functional.silu(found)))

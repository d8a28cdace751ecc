"""A monotone cell: what the splittings are tested on, and an example of what they ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from torchimplicit.nn.equilibrium.monotone import StronglyMonotone


class MonotoneCell(nn.Module):
    r"""$f(z, x) = \mathrm{relu}(W z + U x + b)$ with $I - W$ strongly monotone by `strength`, whatever the parameters.

    Source: E. Winston and J. Z. Kolter (2020, arXiv 2006.08591), section 3.

    Args:
        inputs: size of `x`.
        width: size of `z`.
        strength: $m$, > 0.
        scale: size of the initial weight; iterating `f` diverges for large ones.
    """

    weight: Tensor

    def __init__(self, inputs: int, width: int, strength: float = 0.5, scale: float = 0.5):
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(width, width) / width**0.5)
        parametrize.register_parametrization(self, "weight", StronglyMonotone(strength))
        self.inject = nn.Linear(inputs, width)

    def affine(self, z: Tensor, x: Tensor) -> Tensor:
        """`W z + U x + b`, `(B, width)`."""
        return F.linear(z, self.weight) + self.inject(x)

    def prox(self, z: Tensor, step: float) -> Tensor:
        """ReLU, a projection: the same at every step."""
        return z.relu()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map itself, `(B, width)`."""
        return self.prox(self.affine(z, x), 1.0)

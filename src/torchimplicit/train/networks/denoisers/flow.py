"""A continuous normalising flow of images, its field a network that denoises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.status import OnFailure
from torchimplicit.nn import CNF
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5
from torchimplicit.train.networks.denoisers.unet import ConditionalUNet


class ImageFlow(nn.Module):
    """A continuous normalising flow of images from noise at time 0 to data at time 1, given a class or none.

    Args:
        shape: of an image, `(C, H, W)`.
        channels: see `ConditionalUNet`.
        groups: see `ConditionalUNet`.
        classes: how many there are; None for a flow of all images alike.
        solver: integrates the paths of likelihoods, and of samples where no other is asked for.
        adjoint: differentiates them.
        on_failure: of the layer.
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (16, 32, 64),
        groups: int = 8,
        classes: int | None = None,
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-3),
        adjoint: PathAdjoint = Checkpointed(),
        on_failure: OnFailure = "warn",
    ):
        """Draws the weights."""
        super().__init__()
        self.shape, self.classes = torch.Size(shape), classes
        field = _Velocity(ConditionalUNet(self.shape[0], channels, groups, classes=classes))
        options: dict[str, Any] = {"solver": solver, "adjoint": adjoint, "on_failure": on_failure}
        self.flow = CNF(field, self.shape, trace="hutchinson", **options)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """See `log_prob`."""
        return self.log_prob(x, label)

    def log_prob(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """An unbiased estimate of the log-density `(B,)` of images `(B, C, H, W)`, in nats; classes `(B,)`."""
        return self.flow.log_prob(x, label)


class _Velocity(nn.Module):
    """A denoiser as a field from noise to data: it is told the logarithm of the noise, which resolves the end."""

    least = 5e-3  # of noise and of signal, which are told apart no further

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None) -> Tensor:
        level = (1 - t + self.least) / (t + self.least)
        return self.network(level.log() / 4, x, label)

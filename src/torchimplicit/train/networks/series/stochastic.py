"""Latent stochastic differential equations of irregular series."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.status import OnFailure
from torchimplicit.nn import GaussianLikelihood, GRUEncoder, LatentSDE, Series, Spread
from torchimplicit.ode import PathAdjoint
from torchimplicit.sde import Checkpointed, EulerMaruyama, SDESolver
from torchimplicit.train.networks.series.base import Costs, SeriesNetwork, layers


class Control(nn.Module):
    """What turns the paths: a network of state and context, which starts at zero.

    Args:
        latent: dimension of the state.
        context: that of the context, and the time until it.
        hidden: units of a layer.
    """

    def __init__(self, latent: int, context: int, hidden: int):
        """Draws the weights."""
        super().__init__()
        self.net = layers(latent + context, hidden, latent)
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        """`(N, latent)`."""
        return self.net(torch.cat((z, context), 1))


class Diffusion(nn.Module):
    """How strong the noise is: a network of each state's own coordinate, between two bounds.

    Args:
        latent: dimension of the state.
        hidden: units of each coordinate's layer.
        low: the least.
        high: the most.
    """

    def __init__(self, latent: int, hidden: int = 8, low: float = 0.05, high: float = 1.0):
        """Draws the weights."""
        super().__init__()
        self.low, self.high = low, high
        self.net = nn.ModuleList(layers(1, hidden, 1) for _ in range(latent))

    def forward(self, z: Tensor) -> Tensor:
        """`(N, latent)`."""
        each = [net(part) for net, part in zip(self.net, z.split(1, 1), strict=True)]
        return self.low + (self.high - self.low) * torch.sigmoid(torch.cat(each, 1))


class LatentSDENetwork(SeriesNetwork):
    """A latent stochastic differential equation of series; see `nn.LatentSDE`.

    The likelihood is that of all observations, in the data's units.

    Args:
        channels: see `SeriesNetwork`.
        latent: dimension of the paths.
        width: of the encoder.
        hidden: units of a layer.
        samples: paths in training.
        draws: whose mean is predicted.
        std: of the normal errors.
        learned: whether to start there and learn each variable's. Of few observations that is no good idea: paths that
            go through all of them leave no errors, and no use for noise.
        low: the least diffusion.
        high: the most.
        solver: the method and its steps.
        adjoint: how to differentiate.
        on_failure: of the layer. "ignore", as the module counts what does not arrive and says so once an epoch.
    """

    def __init__(
        self,
        channels: int = 2,
        latent: int = 3,
        width: int = 32,
        hidden: int = 32,
        samples: int = 16,
        draws: int = 200,
        std: float = 0.2,
        learned: bool = False,
        low: float = 0.05,
        high: float = 1.0,
        solver: SDESolver = EulerMaruyama(dt=0.02),
        adjoint: PathAdjoint = Checkpointed(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__(channels, std, "observations")
        self.samples, self.draws = samples, draws
        self.likelihood = GaussianLikelihood(torch.full((channels,), std), learned=learned)
        drift, decoder = layers(latent, hidden, latent), nn.Sequential(layers(latent, hidden, channels), self.units)
        parts = drift, Diffusion(latent, low=low, high=high), Control(latent, width + 1, hidden), decoder
        options: dict[str, Any] = {"solver": solver, "adjoint": adjoint, "on_failure": on_failure, "autonomous": True}
        self.model = LatentSDE(GRUEncoder(channels, latent, width), *parts, self.likelihood, **options)

    def predict(self, seen: Series, ts: Tensor) -> Tensor:
        """See `SeriesNetwork`; the mean of paths of the posterior, and behind the last observation of a forecast."""
        return self.spread(seen, ts, self.draws).mean(0)

    def spread(self, seen: Series, ts: Tensor, samples: int) -> Tensor:
        """Predictions along paths of the posterior, `(samples, B, T, C)`."""
        return self.model(self.units.standard(seen), ts, samples, seed=0)

    def paths(self, seen: Series, ts: Tensor, samples: int) -> Tensor:
        """Latent paths of the posterior, `(samples, B, T, latent)`."""
        return self.model.paths(self.units.standard(seen), ts, samples, seed=0)

    def variances(self, seen: Series) -> Spread:
        """How wide the posterior is beside the data, `(B, C)` each, in the data's units; see `nn.LatentSDE.spread`."""
        spread = self.model.spread(self.units.standard(seen), seed=0)
        return spread._replace(data=spread.data * self.units.std.square())  # the others are read from the decoder

    def cost(self, seen: Series, target: Series, kl_weight: float = 1.0) -> Costs:
        """Minus the bound of the evidence."""
        drawn: dict[str, Any] = {"samples": self.samples} if self.training else {"samples": self.draws, "seed": 0}
        return Costs(-self.model.elbo(self.units.standard(seen), target, kl_weight=kl_weight, **drawn), None)

"""Latent ordinary differential equations, and recurrent states that follow one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import ODERNN, GRUEncoder, LatentODE, ODERNNEncoder, Series, TimeAttention
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5
from torchimplicit.train.networks.series.base import Costs, SeriesNetwork, layers, with_times
from torchimplicit.train.networks.series.last_values import Carry
from torchimplicit.train.networks.series.summary import SummaryEncoder

ENCODERS = ("summary", "gru", "ode-rnn", "attention")


class LatentODENetwork(SeriesNetwork):
    """A latent ordinary differential equation of series; see `nn.LatentODE`.

    Args:
        channels: see `SeriesNetwork`.
        latent: dimension of the paths.
        encoder: "summary", "gru", "ode-rnn" or "attention"; see `SummaryEncoder`, `nn.GRUEncoder`, `nn.ODERNNEncoder`,
            `nn.TimeAttention`.
        width: of the encoder.
        hidden: units of a layer of the field, and of the decoder.
        dropout: in the decoder.
        carry: whether the path tells departures from what the last observations say, see `Carry`, or all. Most of what
            is measured at a bedside stays nearly what it was, and a path then need not remember it. Not where the
            target has been seen.
        samples: draws of the start in training.
        draws: whose mean is predicted.
        bound: "elbo" or "iwae"; see `nn.LatentODE.elbo`.
        solver: integrates the paths.
        adjoint: differentiates them.
        on_failure: of the layer. "ignore", as the module counts what does not arrive and says so once an epoch.
        **options: see `SeriesNetwork`.
    """

    def __init__(
        self,
        channels: int = 41,
        latent: int = 20,
        encoder: str = "summary",
        width: int = 64,
        hidden: int = 50,
        dropout: float = 0.0,
        carry: bool = False,
        samples: int = 1,
        draws: int = 10,
        bound: str = "elbo",
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-4),
        adjoint: PathAdjoint = Checkpointed(),
        on_failure: OnFailure = "ignore",
        **options: Any,
    ):
        """Draws the weights."""
        super().__init__(channels, **options)
        self.encoder, self.samples, self.draws, self.bound = encoder, samples, draws, bound
        require(self, "encoder", encoder in ENCODERS, f"one of {', '.join(ENCODERS)}")
        reader = {
            "summary": lambda: SummaryEncoder(channels, latent, width, dropout=dropout),
            "gru": lambda: GRUEncoder(channels, latent, width),
            "ode-rnn": lambda: ODERNNEncoder(channels, latent, width, hidden),
            "attention": lambda: TimeAttention(channels, latent, torch.linspace(0, 1, 32), width),
        }[encoder]()
        field = layers(latent, hidden, hidden, latent)
        decoder = nn.Sequential(layers(latent, hidden, channels, activation=nn.ReLU, dropout=dropout), self.units)
        path: dict[str, Any] = {"solver": solver, "adjoint": adjoint, "on_failure": on_failure, "autonomous": True}
        self.model = LatentODE(reader, field, decoder, self.likelihood, **path)
        self.label = layers(latent, 100, 1, activation=nn.ReLU, dropout=dropout)
        self.carry = Carry(channels) if carry else None

    def predict(self, seen: Series, ts: Tensor) -> Tensor:
        """See `SeriesNetwork`; the mean of draws that belong to the series' place in the batch."""
        return self.spread(seen, ts, self.draws).mean(0)

    def spread(self, seen: Series, ts: Tensor, samples: int) -> Tensor:
        """Predictions by draws of the start, `(samples, B, T, C)`."""
        return self.carried(seen, ts) + self.model(self.units.standard(seen), ts, samples, seed=0)

    def paths(self, seen: Series, ts: Tensor, samples: int) -> Tensor:
        """Latent paths, `(samples, B, T, latent)`."""
        return self.model.paths(self.units.standard(seen), ts, samples, seed=0)

    def cost(self, seen: Series, target: Series, kl_weight: float = 1.0) -> Costs:
        """Minus the bound of the evidence; the label is read from the starts of the paths."""
        bound: Any = self.bound
        drawn: dict[str, Any] = {"samples": self.samples} if self.training else {"samples": self.draws, "seed": 0}
        told = Series(target.times, target.values - self.carried(seen, target.times), target.mask)
        evidence = self.model.elbo(self.units.standard(seen), told, kl_weight=kl_weight, bound=bound, **drawn)
        assert self.model.starts is not None
        return Costs(-evidence, self.label(self.model.starts).squeeze(-1).mean(0))

    def carried(self, seen: Series, ts: Tensor) -> Tensor:
        """What the last observations say beside the path, `(B, T, C)`."""
        if self.carry is None:
            return self.units.mean.new_zeros(*ts.shape, self.channels)
        return self.carry(seen, ts, self.units.mean)


class ODERNNNetwork(SeriesNetwork):
    """A recurrent state that follows a differential equation between times, and says what comes; see `nn.ODERNN`.

    Args:
        channels: see `SeriesNetwork`.
        width: of the state.
        hidden: units of a layer.
        dropout: in the decoder.
        **options: see `SeriesNetwork`.
    """

    def __init__(self, channels: int = 41, width: int = 64, hidden: int = 50, dropout: float = 0.0, **options: Any):
        """Draws the weights."""
        super().__init__(channels, **options)
        decoder = nn.Sequential(layers(width, hidden, channels, activation=nn.ReLU, dropout=dropout), self.units)
        self.model = ODERNN(channels, width, hidden, decoder=decoder)

    def predict(self, seen: Series, ts: Tensor) -> Tensor:
        """What to expect at times from what lies before each; see `SeriesNetwork`."""
        merged, place = with_times(self.units.standard(seen), ts)
        return self.model(merged).gather(1, place.unsqueeze(2).expand(-1, -1, self.channels))

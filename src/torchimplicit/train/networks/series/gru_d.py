"""A recurrent network whose inputs and state decay between observations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.nn import Series
from torchimplicit.train.networks.series.base import Costs, SeriesNetwork, layers, with_times
from torchimplicit.train.networks.series.last_values import last_before


class GRUD(SeriesNetwork):
    r"""GRU-D: where a variable is not observed, its last value decays to its mean, and the state decays to zero.

    $\hat x = m x + (1 - m) (\gamma_x x' + (1 - \gamma_x) \bar x)$, $h \leftarrow \gamma_h h$, $\gamma = \exp(-\max(0, W
    \delta + b))$, with $\delta$ the time since each variable's last observation. A prediction is read from the state
    that has decayed until then. A baseline: it has no distribution of paths.

    Source: Z. Che et al., Scientific Reports 8, 2018, equations 3 to 6.

    Args:
        channels: see `SeriesNetwork`.
        width: of the state.
        hidden: of the network that reads a prediction.
        dropout: in that network, and on the state.
        **options: see `SeriesNetwork`.
    """

    def __init__(self, channels: int = 41, width: int = 64, hidden: int = 64, dropout: float = 0.0, **options: Any):
        """Draws the weights."""
        super().__init__(channels, **options)
        self.input_decay = nn.Parameter(torch.zeros(2, channels))
        self.state_decay = nn.Linear(channels, width)
        self.cell = nn.GRUCell(2 * channels, width)
        self.read = layers(width, hidden, channels, activation=nn.ReLU, dropout=dropout)
        self.label = layers(width, hidden, 1, activation=nn.ReLU, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def predict(self, seen: Series, ts: Tensor) -> Tensor:
        """What to expect at times from what lies before each; see `SeriesNetwork`."""
        return self._read(seen, ts)[0]

    def cost(self, seen: Series, target: Series, kl_weight: float = 1.0) -> Costs:
        """See `SeriesNetwork.cost`; the label is read from the state after all that is seen."""
        outputs, state = self._read(seen, target.times)
        return Costs(-self.likelihood(outputs, target), self.label(self.dropout(state))[:, 0])

    def _read(self, seen: Series, ts: Tensor) -> tuple[Tensor, Tensor]:
        """What to expect at times, `(B, T, C)`, and the last state, `(B, width)`."""
        merged, place = with_times(self.units.standard(seen), ts)
        known, since, ever = last_before(merged, merged.times)
        weight, bias = self.input_decay
        guess = known * torch.exp(-torch.relu(weight * since + bias)) * ever
        states, state = self._states(merged, guess, since)
        asked = states.gather(1, place.unsqueeze(2).expand(-1, -1, states.shape[2]))
        return self.units(self.read(self.dropout(asked))), state

    def _states(self, series: Series, guess: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
        """The decayed state before each time, `(B, T, width)`, and the one after the last observation."""
        mask = series.mask.to(guess.dtype)
        inputs = torch.cat((torch.where(series.mask, series.values, guess), mask), 2).unbind(1)
        decays = torch.exp(-torch.relu(self.state_decay(since))).unbind(1)
        state, before = guess.new_zeros(len(guess), self.cell.hidden_size), []
        for x, decay, seen in zip(inputs, decays, series.mask.any(2, keepdim=True).unbind(1), strict=True):
            before.append(state * decay)
            state = torch.where(seen, self.cell(x, before[-1]), state)
        return torch.stack(before, 1), state

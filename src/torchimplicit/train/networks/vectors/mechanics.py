"""Slopes of mechanical systems: by an energy that is learned, and by a network that knows of none."""

from __future__ import annotations

from torch import Tensor, nn

from torchimplicit.nn import HamiltonianNet
from torchimplicit.train.networks.parts import dense


class PlainField(nn.Module):
    """The slope of a state by a dense network that knows nothing of mechanics.

    Args:
        width: of the state.
        hidden: of the layers between, of which there are two.
    """

    def __init__(self, width: int = 2, hidden: int = 200):
        """Draws the weights."""
        super().__init__()
        self.width = width
        self.net = dense(width, hidden, hidden, width)

    def forward(self, y: Tensor) -> Tensor:
        """The slope, `(B, width)`."""
        return self.net(y)


class HamiltonianField(nn.Module):
    """The slope of a state, coordinates and momenta, by an energy that a dense network has learned.

    Source: S. Greydanus, M. Dzamba, J. Yosinski, arXiv 1906.01563.

    Args:
        width: of the state, an even number.
        hidden: of the layers between, of which there are two.
    """

    def __init__(self, width: int = 2, hidden: int = 200):
        """Draws the weights."""
        super().__init__()
        self.width = width
        self.mechanics = HamiltonianNet(dense(width, hidden, hidden, 1))

    def forward(self, y: Tensor) -> Tensor:
        """The slope, `(B, width)`."""
        return self.mechanics(y.new_zeros(()), y)

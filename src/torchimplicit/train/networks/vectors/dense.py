"""The neural ODE of vectors, its field a dense network that sees the time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require, require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import NeuralODE, PathPenalty
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5
from torchimplicit.train.networks.parts import dense
from torchimplicit.train.networks.penalties import paid, weighted


class DenseField(nn.Module):
    """A dense tanh network of time and state.

    Args:
        width: of the state.
        hidden: of the layers between.
        layers: how many of these.
    """

    def __init__(self, width: int, hidden: int = 64, layers: int = 2):
        """Draws the weights."""
        super().__init__()
        self.width, self.hidden, self.layers = width, hidden, layers
        for name in ("width", "hidden", "layers"):
            require(self, name, isinstance(getattr(self, name), int) and getattr(self, name) >= 1, "an integer >= 1")
        self.net = dense(width + 1, *(hidden,) * layers, width)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope `(B, width)` at times `(B, 1)`."""
        return self.net(torch.cat((y, t.expand(len(y), 1)), 1))


class DenseODE(nn.Module):
    """Vectors to where a path from them leads, or to all of the path.

    Args:
        width: of a vector.
        hidden: see `DenseField`.
        layers: see `DenseField`.
        duration: of the path.
        times: how many states of it are returned, in equal steps from the start on; 1 returns the last one.
        solver: integrates the path.
        adjoint: differentiates it.
        penalties: of the path, see `nn.NeuralODE`.
        penalty: their weight; 0 leaves them out.
        on_failure: of the layer. "ignore", as `Regressor` counts what does not arrive and says so once an epoch.
    """

    def __init__(
        self,
        width: int = 1,
        hidden: int = 64,
        layers: int = 2,
        duration: float = 1.0,
        times: int = 1,
        solver: PathSolver = Tsit5(rtol=1e-4, atol=1e-5),
        adjoint: PathAdjoint = Checkpointed(),
        penalties: Sequence[PathPenalty] = (),
        penalty: float = 0.0,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.width, self.times, self.weight = width, times, penalty
        require_count(self, "times")
        ts = torch.linspace(0, duration, max(times, 2))
        self.path = NeuralODE(
            DenseField(width, hidden, layers), ts, solver, adjoint,
            output="last" if times == 1 else "all", penalties=paid(penalties, penalty), on_failure=on_failure,
        )  # fmt: skip

    def forward(self, y: Tensor) -> Tensor:
        """`(B, width)`, or `(B, times, width)`, of `(B, width)`."""
        value = self.path(y)
        return value if self.times == 1 else value.transpose(0, 1)

    def penalty(self) -> Tensor:
        """The weighted penalties of the last path, a scalar."""
        return weighted(self.path, self.weight)

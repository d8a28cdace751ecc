"""Networks whose depth is the way along a path: neural ODEs, flows, and fields of mechanics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import CNF, NeuralODE, PathPenalty
from torchimplicit.nn.paths.mechanics import HamiltonianNet
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5


class TimedConvolution(nn.Module):
    """A 3x3 convolution that sees the time as one more channel."""

    def __init__(self, channels: int):
        """Draws the weights."""
        super().__init__()
        self.convolution = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` from the same, at times `(B, 1, 1, 1)`."""
        return self.convolution(torch.cat((x, t.expand(len(x), 1, *x.shape[2:])), 1))


class ConvolutionalField(nn.Module):
    """Two convolutions with group norms and ReLU before them: the field of an ODE-Net."""

    def __init__(self, channels: int, groups: int):
        """Draws the weights."""
        super().__init__()
        self.first, self.second = TimedConvolution(channels), TimedConvolution(channels)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(3))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The slope, like `x`."""
        before, between, after = self.norms
        x = self.first(t, torch.relu(before(x)))
        return after(self.second(t, torch.relu(between(x))))


class ConvolutionalODE(nn.Module):
    """Images to classes: strided convolutions, a neural ODE, a dense layer.

    Source: R. T. Q. Chen et al., arXiv 1806.07366, section 3, with fewer channels.

    Args:
        in_channels: 1 for grey images, 3 for coloured ones.
        channels: of the path.
        groups: of the group norms.
        strides: of the convolutions before it, one each.
        pool: the image that the dense layer sees is averaged to `pool x pool`.
        classes: number of classes.
        solver: walks the path.
        adjoint: differentiates it.
        penalties: of the path, see `nn.NeuralODE`.
        penalty: their weight; 0 leaves them out.
        on_failure: of the layer. "ignore", as `Classifier` counts what does not arrive and says so once an epoch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 32,
        groups: int = 8,
        strides: Sequence[int] = (2, 2),
        pool: int = 4,
        classes: int = 10,
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-3),
        adjoint: PathAdjoint = Checkpointed(),
        penalties: Sequence[PathPenalty] = (),
        penalty: float = 0.0,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes, self.weight = classes, penalty
        sizes = [in_channels, *(channels for _ in strides)]
        self.stem = nn.Sequential()
        for (inside, outside), stride in zip(pairwise(sizes), strides, strict=True):
            self.stem.extend([nn.Conv2d(inside, outside, 3, stride, padding=1), nn.GroupNorm(groups, outside)])
        field = ConvolutionalField(channels, groups)
        self.path = NeuralODE(
            field, solver=solver, adjoint=adjoint, penalties=_paid(penalties, penalty), on_failure=on_failure
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(channels * pool**2, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, H, W)`."""
        return self.head(self.path(self.stem(x)))

    def penalty(self) -> Tensor:
        """The weighted penalties of the last path, a scalar."""
        return _weighted(self.path, self.weight)


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
        self.net = _dense(width + 1, *(hidden,) * layers, width)

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
        solver: walks the path.
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
        require(self, "times", isinstance(times, int) and times >= 1, "an integer >= 1")
        ts = torch.linspace(0, duration, max(times, 2))
        self.path = NeuralODE(
            DenseField(width, hidden, layers), ts, solver, adjoint,
            output="last" if times == 1 else "all", penalties=_paid(penalties, penalty), on_failure=on_failure,
        )  # fmt: skip

    def forward(self, y: Tensor) -> Tensor:
        """`(B, width)`, or `(B, times, width)`, of `(B, width)`."""
        value = self.path(y)
        return value if self.times == 1 else value.transpose(0, 1)

    def penalty(self) -> Tensor:
        """The weighted penalties of the last path, a scalar."""
        return _weighted(self.path, self.weight)


class DenseFlow(nn.Module):
    """A continuous normalising flow of vectors, its field a dense network.

    Args:
        width: of a vector.
        hidden: see `DenseField`.
        layers: see `DenseField`.
        trace: "exact", or "hutchinson" while training (measured it is exact).
        solver: walks the paths.
        adjoint: differentiates them.
        penalties: of the paths, see `nn.NeuralODE`.
        penalty: their weight; 0 leaves them out.
        on_failure: of the layer. "ignore", as `Flow` counts what does not arrive and says so once an epoch.
    """

    def __init__(
        self,
        width: int = 2,
        hidden: int = 64,
        layers: int = 3,
        trace: str = "exact",
        solver: PathSolver = Tsit5(rtol=1e-4, atol=1e-5),
        adjoint: PathAdjoint = Checkpointed(),
        penalties: Sequence[PathPenalty] = (),
        penalty: float = 0.0,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.width, self.weight = width, penalty
        options: dict[str, Any] = {"trace": trace, "solver": solver, "adjoint": adjoint, "on_failure": on_failure}
        self.flow = CNF(DenseField(width, hidden, layers), width, penalties=_paid(penalties, penalty), **options)

    def forward(self, x: Tensor) -> Tensor:
        """See `log_prob`."""
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density `(B,)` of vectors `(B, width)`, in nats."""
        flow, chosen = self.flow, self.flow.trace
        try:
            flow.trace = chosen if self.training else "exact"
            return flow.log_prob(x)
        finally:
            flow.trace = chosen

    def sample(self, count: int) -> Tensor:
        """Vectors `(count, width)`."""
        return self.flow.sample(count)

    def paths(self, count: int, times: int = 30) -> Tensor:
        """How `count` samples get to their places, `(times, count, width)`."""
        ts = torch.linspace(float(self.flow.ts[0]), float(self.flow.ts[-1]), times, device=self.flow.ts.device)
        return self.flow.transport(torch.randn(count, self.width, device=ts.device), ts)

    def penalty(self) -> Tensor:
        """The weighted penalties of the last density, a scalar."""
        return _weighted(self.flow, self.weight)


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
        self.net = _dense(width, hidden, hidden, width)

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
        self.mechanics = HamiltonianNet(_dense(width, hidden, hidden, 1))

    def forward(self, y: Tensor) -> Tensor:
        """The slope, `(B, width)`."""
        return self.mechanics(y.new_zeros(()), y)


def _paid(penalties: Sequence[PathPenalty], weight: float) -> Sequence[PathPenalty]:
    """The penalties, unless they weigh nothing: they cost time all the same."""
    return penalties if weight else ()


def _weighted(layer: NeuralODE | CNF, weight: float) -> Tensor:
    total = sum((each.mean() for each in layer.penalties), torch.zeros(()))
    return weight * total


def _dense(*widths: int) -> nn.Sequential:
    """Dense layers with tanh between."""
    modules: list[nn.Module] = []
    for inside, outside in pairwise(widths):
        modules += [nn.Linear(inside, outside), nn.Tanh()]
    return nn.Sequential(*modules[:-1])

"""Dense networks for small images."""

from __future__ import annotations

from torch import Tensor, nn

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import DEQ
from torchimplicit.solve import Anderson, Solver
from torchimplicit.train.networks.parts import dense
from torchimplicit.train.networks.vectors.equilibrium import DenseDEQ


class BottleneckCell(nn.Module):
    """A tanh network `width - inner - inner - width` of the sum `z + x`."""

    def __init__(self, width: int, inner: int):
        """Three dense layers."""
        super().__init__()
        self.layers = nn.Sequential(*dense(width, inner, inner, width), nn.Tanh())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """`(B, width)` from two of these."""
        return self.layers(z + x)


class DigitsNetwork(DenseDEQ):
    """8 x 8 images to 10 classes: a dense layer, an equilibrium of one tanh layer, a dense layer.

    Args:
        width: see `DenseDEQ`.
        solver: see `DenseDEQ`.
        adjoint: see `DenseDEQ`.
        on_failure: see `DenseDEQ`.
    """

    def __init__(
        self,
        width: int = 64,
        solver: Solver = Anderson(),
        adjoint: Adjoint = Implicit(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__(64, 10, width, solver, adjoint, on_failure)


class MNISTNetwork(nn.Module):
    """28 x 28 images to 10 classes: 784-200-20, an equilibrium of 20-10-10-20, 20-15-10, with tanh between.

    Source: C. Rackauckas et al., Composability in Julia: Implement Deep Equilibrium Models via Neural ODEs, 2021, but
    for the tanh that it puts on the logits: in [-1, 1] they bound every probability by 0.45, so that right and wrong
    answers pull nearly alike.

    Args:
        solver: finds the equilibrium.
        adjoint: differentiates it.
        squash: put the last tanh back.
        on_failure: of the layer. "ignore", as `Classifier` counts what does not converge and says so once an epoch.
    """

    def __init__(
        self,
        solver: Solver = Anderson(),
        adjoint: Adjoint = Implicit(),
        squash: bool = False,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), *dense(784, 200, 20), nn.Tanh())
        self.equilibrium = DEQ(BottleneckCell(20, 10), solver, adjoint, on_failure=on_failure)
        self.head = nn.Sequential(*dense(20, 15, 10), *([nn.Tanh()] if squash else []))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, 10)` of images `(B, 1, 28, 28)`."""
        return self.head(self.equilibrium(self.encoder(x)))

"""The equilibrium of one tanh layer, of vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import DEQ
from torchimplicit.solve import Anderson, Solver


class RowBound(nn.Module):
    """A parametrisation: scales the rows of a matrix down to a sum of magnitudes of at most `bound`.

    With a bound below one, `tanh(W z + x)` contracts by it in the largest-entry norm: the equilibrium exists, is the
    only one, and every solver finds it, whatever the training does.
    Source: L. El Ghaoui et al., Implicit deep learning, SIAM J. Math. Data Sci. 3 (2021) 930, section 3.

    Args:
        bound: a number > 0.
    """

    def __init__(self, bound: float = 0.95):
        """Keeps the bound."""
        super().__init__()
        self.bound = bound

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix that is used, from the one that is trained."""
        size = weight.abs().sum(1, keepdim=True)
        return weight * (self.bound / size.clamp(min=self.bound))


class TanhCell(nn.Module):
    """`tanh(W z + x)`, with `W` bounded such that there is exactly one equilibrium; see `RowBound`."""

    def __init__(self, width: int):
        """One weight `(width, width)`; the bias is left to whatever makes `x`."""
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        register_parametrization(self.linear, "weight", RowBound())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """`(B, width)` from two of these."""
        return torch.tanh(self.linear(z) + x)


class DenseDEQ(nn.Module):
    """Features to outputs: a dense layer, an equilibrium of one tanh layer, a dense layer.

    Args:
        features: of a sample; all its entries together.
        outputs: for every sample.
        width: of the equilibrium.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        on_failure: of the layer. "ignore", as the modules count what does not converge and say so once an epoch.
    """

    def __init__(
        self,
        features: int = 1,
        outputs: int = 1,
        width: int = 64,
        solver: Solver = Anderson(),
        adjoint: Adjoint = Implicit(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.features, self.outputs, self.width = features, outputs, width
        require_count(self, "features", "outputs", "width")
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(features, width))
        self.equilibrium = DEQ(TanhCell(width), solver, adjoint, on_failure=on_failure)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, outputs)` of samples `(B, ...)`."""
        return self.head(self.equilibrium(self.encoder(x)))

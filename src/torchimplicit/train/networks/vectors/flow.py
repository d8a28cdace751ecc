"""Continuous normalising flows of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.status import OnFailure
from torchimplicit.nn import CNF, PathPenalty
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5
from torchimplicit.train.errors import UsageError
from torchimplicit.train.networks.penalties import paid, weighted
from torchimplicit.train.networks.vectors.dense import DenseField


class DenseFlow(nn.Module):
    """A continuous normalising flow of vectors, its field a dense network.

    Args:
        width: of a vector.
        hidden: see `DenseField`.
        layers: see `DenseField`.
        trace: "exact", or "hutchinson" while training (measured it is exact).
        solver: integrates the paths.
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
        self.flow = CNF(DenseField(width, hidden, layers), width, penalties=paid(penalties, penalty), **options)

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
        return weighted(self.flow, self.weight)


class WhitenedFlow(DenseFlow):
    r"""A `DenseFlow` of whitened vectors, $z = L^{-1} (x - m)$, and yet a density of the vectors themselves.

    $m$ is the mean of the training samples and $L L^\top$ their covariance, both found once, by `settle`, and kept with
    the weights. $\log p(x) = \log p(z) - \log \det L$. The last layer of the field starts at zero, so that the first
    density is the normal one with the samples' mean and covariance, and training can only improve on this.

    Not for data without a density, such as pixels without noise, whose covariance may be singular.

    Args:
        width: of a vector.
        **options: see `DenseFlow`.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, width: int = 64, **options: Any):
        """Draws the weights; whitens nothing until it has settled."""
        super().__init__(width, **options)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("factor", torch.eye(width))
        last = self.flow.field.net[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)

    def settle(self, samples: Tensor) -> None:
        """Takes mean and covariance from samples `(N, width)`.

        Raises:
            UsageError: the samples lie in a plane of fewer dimensions.
        """
        samples = samples.double()
        factor, failed = torch.linalg.cholesky_ex(torch.cov(samples.T).reshape(self.width, self.width))
        if int(failed) or not bool(torch.isfinite(factor).all()):
            raise UsageError(
                f"WhitenedFlow: the covariance of the {len(samples)} training samples is singular. Expected samples "
                "with a density, more of them than numbers in each; try noise."
            )
        self.mean.copy_(samples.mean(0))
        self.factor.copy_(factor)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density `(B,)` of vectors `(B, width)`, in nats."""
        z = torch.linalg.solve_triangular(self.factor, (x - self.mean).mT, upper=False).mT
        return super().log_prob(z) - self.factor.diagonal().log().sum()

    def sample(self, count: int) -> Tensor:
        """Vectors `(count, width)`."""
        return self._coloured(super().sample(count))

    def paths(self, count: int, times: int = 30) -> Tensor:
        """How `count` samples get to their places, `(times, count, width)`."""
        return self._coloured(super().paths(count, times))

    def _coloured(self, z: Tensor) -> Tensor:
        return self.mean + z @ self.factor.mT

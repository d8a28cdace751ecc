"""Training flows by flow matching: no path is integrated in training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from torchimplicit.core.options import require, require_count
from torchimplicit.nn import CNF, flow_matching_loss
from torchimplicit.nn.score.matching import Coupling, Targets
from torchimplicit.path.solver import PathSolver
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import Stage
from torchimplicit.train.modules.flow import Flow
from torchimplicit.train.modules.generative import Batch, GenerativeModule
from torchimplicit.train.quality.pictures import strips

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FlowMatching(Flow):
    """Trains the flow of a network of vectors by `torchimplicit.nn.flow_matching_loss`, and at last by its likelihood.

    It is measured as `Flow` does, by likelihood. In training there is the loss alone, `train/loss`: first that of flow
    matching, a regression that solves nothing; in the last `likelihood_steps` the mean negative log-likelihood, a solve
    a step. Each part has a cosine of its own for its learning rate.

    Args:
        network: see `Flow`; its attribute `flow` is the `torchimplicit.nn.CNF` that is trained.
        coupling: "independent", or "optimal", which assigns the noise of a batch to its samples.
        targets: "own", or "batch", the mean of all lines of a batch through a point; see `flow_matching_loss`.
        likelihood_steps: how many steps at the end are by likelihood.
        likelihood_rate: the highest learning rate of these.
        likelihood_solver: solves them, looser than what is measured with; None for the network's own.
        **options: see `EquilibriumModule`; `learning_rate` and `warmup_steps` are those of flow matching.

    Raises:
        UsageError: the run is not longer than its steps by likelihood, or its end is not known (once it trains).
    """

    def __init__(
        self,
        network: nn.Module,
        coupling: Coupling = "independent",
        targets: Targets = "own",
        likelihood_steps: int = 0,
        likelihood_rate: float = 1e-3,
        likelihood_solver: PathSolver | None = None,
        **options: Any,
    ):
        """Wraps the network."""
        super().__init__(network, **options)
        self.coupling: Coupling = coupling
        self.targets: Targets = targets
        self.likelihood_steps, self.likelihood_rate = likelihood_steps, likelihood_rate
        self.likelihood_solver = likelihood_solver
        require_count(self, "likelihood_steps", least=0)
        require(self, "likelihood_rate", 0 < likelihood_rate < math.inf, "a finite number > 0")
        self.metrics["train_metrics"] = MetricCollection({})
        self._turn: float = math.inf  # the first step by likelihood

    def configure_optimizers(self) -> Any:
        """As the base says; here the end of the run is known, and with it where the likelihood begins.

        Raises:
            UsageError: see the class.
        """
        end = self.trainer.estimated_stepping_batches
        self._turn = end - self.likelihood_steps if self.likelihood_steps else math.inf
        if self.likelihood_steps and not 0 < self._turn < math.inf:
            raise UsageError(
                f"FlowMatching(likelihood_steps={self.likelihood_steps}): the run has {end} steps. Expected more, and "
                "a run whose end is known; try fewer, or another --trainer.max_epochs."
            )
        return super().configure_optimizers()

    def rate(self, step: int, end: float) -> float:
        """See `EquilibriumModule.rate`; two cosines, one for each loss."""
        if step < self._turn:
            return super().rate(step, min(self._turn, end))
        way = min((step - self._turn) / self.likelihood_steps, 1.0)
        return self.likelihood_rate / self.learning_rate * (1 + math.cos(math.pi * way)) / 2

    def evaluate(self, stage: Stage, batch: tuple[Tensor, ...]) -> Tensor:
        """The loss of the step in training, the mean negative log-likelihood otherwise."""
        if stage != "train":
            return super().evaluate(stage, batch)
        if self._matches:
            options: dict[str, Any] = {"coupling": self.coupling, "targets": self.targets}
            return flow_matching_loss(self.network.flow, batch[0], **options).mean()
        with _solved_by(self.network.flow, self.likelihood_solver):
            return super().evaluate(stage, batch)

    @property
    def _matches(self) -> bool:
        return self.global_step < self._turn

    def _count_solves(self, stage: Stage) -> None:
        if stage != "train" or not self._matches:  # else nothing is solved, and the last report is an old one
            super()._count_solves(stage)


class ImageFlowMatching(GenerativeModule):
    """Trains a flow of images by `torchimplicit.nn.flow_matching_loss`; see `GenerativeModule` for what is measured.

    Args:
        network: its attribute `flow` is the `torchimplicit.nn.CNF` that is trained; it has `shape` and `classes`, and
            `log_prob(x, label)`.
        **options: see `GenerativeModule`; `samplers` are solvers of paths, such as `Heun(dt=0.1)`.
    """

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """The flow-matching loss."""
        x, label = self.scaling(batch[0], self._known_levels()), batch[1] if self.classes else None
        return flow_matching_loss(self.network.flow, x, label).mean()

    def draw(self, count: int, sampler: Any, seed: int, label: Tensor | None) -> tuple[Tensor, int]:
        """See `GenerativeModule.draw`."""
        path = self._transported(count, sampler, seed, label, self.network.flow.ts)
        return path[-1], self.network.flow.report.nfev

    def log_prob(self, x: Tensor, label: Tensor | None) -> Tensor:
        """See `GenerativeModule.log_prob`; by one probe of Hutchinson's for each image."""
        return self.network.log_prob(x, label)

    def pictures(self, batch: Batch) -> dict[str, Figure]:
        """Those of `GenerativeModule`, and how noise becomes images."""
        labels = batch[1][:8]
        label = labels if self.classes else None
        path = self._transported(len(labels), None, 0, label, torch.linspace(0, 1, 12, device=self.device))
        shown = self.unit(self._shown(path)).flatten(2)
        return super().pictures(batch) | {"from noise to images": strips(shown[None])}

    def _transported(self, count: int, solver: Any, seed: int, label: Tensor | None, ts: Tensor) -> Tensor:
        """Noise on its way to images, `(T, count, *shape)`."""
        flow = self.network.flow
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, *self.network.shape, generator=generator).to(self.device)
        with _solved_by(flow, solver), torch.no_grad():
            return flow.transport(z, ts, label)


@contextmanager
def _solved_by(flow: CNF, solver: PathSolver | None) -> Iterator[None]:
    """Another solver for a while; None for the flow's own."""
    own = flow.solver
    try:
        flow.solver = solver or own
        yield
    finally:
        flow.solver = own

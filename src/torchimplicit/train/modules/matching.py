"""Training flows by flow matching: no path is integrated in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from torchimplicit.nn import flow_matching_loss
from torchimplicit.nn.score.matching import Coupling
from torchimplicit.train.modules.equilibrium import Stage
from torchimplicit.train.modules.flow import Flow
from torchimplicit.train.modules.generative import Batch, GenerativeModule
from torchimplicit.train.quality.pictures import strips

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FlowMatching(Flow):
    """Trains the flow of a network of vectors by `torchimplicit.nn.flow_matching_loss`.

    It is measured as `Flow` does, by likelihood; in training there is the loss alone.

    Args:
        network: see `Flow`; its attribute `flow` is the `torchimplicit.nn.CNF` that is trained.
        coupling: "independent", or "optimal", which assigns the noise of a batch to its samples.
        **options: see `EquilibriumModule`.
    """

    def __init__(self, network: nn.Module, coupling: Coupling = "independent", **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.coupling: Coupling = coupling
        self.metrics["train_metrics"] = MetricCollection({})

    def evaluate(self, stage: Stage, batch: tuple[Tensor, ...]) -> Tensor:
        """The flow-matching loss in training, the mean negative log-likelihood otherwise."""
        if stage != "train":
            return super().evaluate(stage, batch)
        return flow_matching_loss(self.network.flow, batch[0], coupling=self.coupling).mean()

    def _count_solves(self, stage: Stage) -> None:
        if stage != "train":  # where nothing is solved, and the last report is an old one
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
        flow, own = self.network.flow, self.network.flow.solver
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, *self.network.shape, generator=generator).to(self.device)
        try:
            flow.solver = solver or own
            with torch.no_grad():
                return flow.transport(z, ts, label)
        finally:
            flow.solver = own

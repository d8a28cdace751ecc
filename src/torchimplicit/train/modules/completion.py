"""Training a satisfiability layer on puzzles: the surest numbers first, sparse contradictions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from torchimplicit.core.options import require, require_count
from torchimplicit.train.modules.equilibrium import Stage
from torchimplicit.train.modules.proximal import ProximalMomentum
from torchimplicit.train.modules.puzzle import Batch, Puzzle


class Completion(Puzzle):
    """Trains a network that fills boards by cross entropy over the blanks, its contradictions sparse; see `Puzzle`.

    Logs beside `solved` and `cells` in validation and test `filled`: the fraction of the boards that `network.fill`
    solves, which writes the surest numbers down and solves again.

    Args:
        network: with `fill(board) -> board`, and a matrix `layer.coupling` among its parameters; see
            `networks.BoardRelaxation`.
        size: see `Puzzle`.
        sparsity: of `layer.coupling`; see `ProximalMomentum`, which is the optimiser.
        scale_rate: learning rate of all other parameters, which are logarithms.
        at_once: numbers that `fill` writes down a solve.
        **options: see `EquilibriumModule`; there is no weight decay.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int = 9,
        sparsity: float = 0.3,
        scale_rate: float = 1e-2,
        at_once: int = 2,
        **options: Any,
    ):
        """Wraps the network."""
        super().__init__(network, size, **options)
        self.sparsity, self.scale_rate, self.at_once = sparsity, scale_rate, at_once
        require(self, "sparsity", sparsity >= 0, "a number >= 0")
        require(self, "scale_rate", scale_rate >= 0, "a number >= 0")
        require_count(self, "at_once")
        self.filled = nn.ModuleDict({f"{stage}_filled": MeanMetric() for stage in ("val", "test")})

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """Cross entropy, a mean over the blank cells."""
        board, solution = batch
        logits, blank = self(board), board == 0
        self.count(stage, logits.detach().argmax(-1), solution - 1)
        if stage != "train":
            report = self.network.layer.report
            full = self.network.fill(board, self.at_once)
            self.network.layer.report = report  # of the boards as they came
            right = (full == solution).all(1).float()
            metric: Any = self.filled[f"{stage}_filled"]
            metric.update(right)
            self.log(f"{stage}/filled", metric, on_step=False, on_epoch=True, batch_size=len(board))
        return nn.functional.cross_entropy(logits[blank], solution[blank] - 1)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Full boards `(B, cells)`, by `network.fill`."""
        return self.network.fill(batch[0], self.at_once)

    def configure_optimizers(self) -> Any:
        """`ProximalMomentum`, its rates falling to a fiftieth along a cosine where the end of the run is known."""
        coupling = self.network.layer.coupling
        others = [each for each in self.parameters() if each is not coupling]
        groups = [{"params": [coupling], "sparsity": self.sparsity}, {"params": others, "lr": self.scale_rate}]
        optimizer = ProximalMomentum(groups, self.learning_rate)
        end = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            rise = min((step + 1) / (self.warmup_steps + 1), 1.0)
            way = min(step / max(end, 1), 1.0) if math.isfinite(end) else 0.0
            return rise * (0.51 + 0.49 * math.cos(math.pi * way))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

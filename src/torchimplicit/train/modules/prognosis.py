"""Training networks that say what becomes of an irregular series."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from torchimplicit.core.options import require
from torchimplicit.train.data.series import SeriesBatch
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import Stage
from torchimplicit.train.modules.forecaster import SeriesModule


class Prognosis(SeriesModule):
    """Trains a network for a label of 0 or 1, by cross entropy beside what it makes small anyway; see `SeriesModule`.

    Logs `auc` in validation and test, the area under the receiver's curve.

    Args:
        network: see `networks.SeriesNetwork`; one whose `cost` has a logit.
        weight: of the cross entropy.
        **options: see `SeriesModule`.

    Raises:
        UsageError: the network has no logit, or the data no labels (in the first batch).
    """

    def __init__(self, network: nn.Module, weight: float = 100.0, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.weight = weight
        require(self, "weight", weight > 0, "a number > 0")
        self.measure(auc=BinaryAUROC())

    def evaluate(self, stage: Stage, batch: SeriesBatch) -> Tensor:
        """What the network makes small, and the weighted cross entropy, means over the series."""
        seen, target, label = batch
        cost = self.network.cost(seen, target, self.kl_weight(stage))
        if cost.logit is None:
            raise UsageError(f"Prognosis: {type(self.network).__name__} says nothing of a label. Try LatentODENetwork.")
        if not bool(label.isfinite().all()):
            raise UsageError("Prognosis: the data has no labels. Try --data PhysioNet2012.")
        if stage != "train":
            self.count(stage, cost.logit.sigmoid(), label.long())
        entropy = nn.functional.binary_cross_entropy_with_logits(cost.logit, label.to(cost.logit.dtype))
        return cost.series.mean() + self.weight * entropy

"""A classifier of images with equilibrium layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules.equilibrium import EquilibriumModule, Stage
from torchimplicit.train.modules.predictions import PredictionFile

Batch = tuple[Tensor, Tensor]


class Classifier(EquilibriumModule):
    """Trains a network that maps images to logits by cross entropy, and logs its accuracy; see `EquilibriumModule`.

    Args:
        network: images `(B, ...)` to logits `(B, classes)`.
        classes: number of classes; those of the network and of the data are compared with it before any training.
        **options: see `EquilibriumModule`.

    Raises:
        UsageError: the network says that it has another number of classes.
    """

    def __init__(self, network: nn.Module, classes: int = 10, **options: Any):
        """Wraps the network."""
        super().__init__(network, **options)
        self.classes = classes
        self._compare("network", getattr(network, "classes", classes))
        self.measure(accuracy=MulticlassAccuracy(classes, average="micro", validate_args=False))

    def setup(self, stage: str) -> None:
        """Compares the data with the network.

        Raises:
            UsageError: the data has another number of classes.
        """
        self._compare("data", getattr(getattr(self.trainer, "datamodule", None), "classes", self.classes))

    def evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        """Cross entropy."""
        x, label = batch
        logits = self(x)
        self.count(stage, logits, label)
        return nn.functional.cross_entropy(logits, label)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities `(B, classes)`."""
        return self(batch[0]).softmax(1)

    def prediction_writer(self, run: Path) -> PredictionFile:
        """`predictions.csv`: class and probability."""
        return PredictionFile(run / "predictions.csv")

    def _compare(self, whose: str, classes: int) -> None:
        if classes != self.classes:
            raise UsageError(
                f"Classifier(classes={self.classes}): the {whose} has {classes} classes. Try the same number for the "
                "network, the classifier and the data."
            )

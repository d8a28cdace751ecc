"""`torchimplicit predict`: what a model says about every sample of the test split, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils import _pytree as pytree


class PredictionFile(BasePredictionWriter):
    """Writes class and probability of every sample to a CSV file, in the order of the data.

    Args:
        path: of the file; processes of rank 1 and more add their rank to its name.
    """

    def __init__(self, path: Path):
        """Writes nothing yet."""
        super().__init__("epoch")
        self.path = path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes what an earlier run with more processes may have left."""
        if trainer.is_global_zero:
            for old in self.path.parent.glob(f"{self.path.stem}*{self.path.suffix}"):
                old.unlink()
        trainer.strategy.barrier()

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        """Writes the file and says where it is."""
        path = self.path.with_stem(f"{self.path.stem}-{trainer.global_rank}") if trainer.global_rank else self.path
        probabilities, classes = torch.cat(predictions).max(1)
        samples = [int(i) for i in pytree.tree_leaves(batch_indices)]  # of the data set: a process has but some of them
        table = zip(samples, classes, probabilities, strict=True)
        rows = (f"{sample},{int(c)},{float(p):.6f}\n" for sample, c, p in table)
        path.write_text("sample,class,probability\n" + "".join(rows))
        print(f"predictions: {path}")

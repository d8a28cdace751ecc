"""The Lightning module of the recipes: a classifier with equilibrium layers, and how their solves go."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from torchimplicit.core.status import ConvergenceWarning, Report
from torchimplicit.nn import DEQ
from torchimplicit.train.checkpoint import check, origin
from torchimplicit.train.meter import SolveMeter

Batch = tuple[Tensor, Tensor]
Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")


class Classifier(LightningModule):
    """Trains a network that maps images to logits, and logs what its equilibrium layers report.

    Logged in training every `log_every_n_steps`, averaged over these steps: `train/loss`, `train/accuracy`, and for the
    forward and the backward solves of all `DEQ` layers together `train/forward_steps` (mean), `train/forward_residual`
    (largest), `train/forward_unconverged` (fraction), `train/backward_...`. In validation and test `val/...` and
    `test/...` once an epoch. Solves that do not converge are warned of once an epoch.

    Args:
        network: images `(B, ...)` to logits `(B, classes)`.
        recipe: name of the recipe; a checkpoint keeps it and is refused by another recipe.
        learning_rate: of AdamW at the start; it falls to zero along a cosine.
        weight_decay: of AdamW.
        classes: number of classes.

    Attributes:
        config: how the command built model and data, for the checkpoint; None when it did not.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: str = "unnamed",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        classes: int = 10,
    ):
        """Wraps the network."""
        super().__init__()
        self.network, self.recipe = network, recipe
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.config: dict[str, Any] | None = None
        self.accuracies = nn.ModuleDict(
            {f"{stage}_accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False) for stage in STAGES}
        )
        self.meters = {f"{stage}/forward": SolveMeter() for stage in STAGES} | {"train/backward": SolveMeter()}
        self._losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(x)

    def configure_optimizers(self) -> Any:
        """AdamW over all parameters, its rate falling to zero along a cosine where the end of the run is known."""
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(int(steps), 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy."""
        loss = self._evaluate("train", batch)
        self._losses.append(loss.detach())
        return loss

    def on_after_backward(self) -> None:
        """Counts the backward solves, whose reports exist from here on, and logs when it is time to."""
        for report in self.reports():
            if report.backward is not None:
                self.meters["train/backward"].add(report.backward)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_training()

    def on_train_epoch_end(self) -> None:
        """Says in one line what did not converge."""
        self._warn_of_failures("train")
        self._restart()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Cross entropy and accuracy."""
        self._evaluation_step("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the solves of the validation."""
        self._log_solves("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Cross entropy and accuracy."""
        self._evaluation_step("test", batch)

    def on_test_epoch_end(self) -> None:
        """Logs the solves of the test."""
        self._log_solves("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities `(B, classes)`."""
        return self(batch[0]).softmax(1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes down whose weights these are."""
        checkpoint.update(origin(self))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the weights of another recipe, with words in place of a list of keys."""
        check(checkpoint, self)

    def reports(self) -> list[Report]:
        """The last report of every `DEQ` layer that has one."""
        layers = (module for module in self.network.modules() if isinstance(module, DEQ))
        return [layer.report for layer in layers if layer.report is not None]

    def _evaluate(self, stage: Stage, batch: Batch) -> Tensor:
        x, label = batch
        logits = self(x)
        self.accuracies[f"{stage}_accuracy"].update(logits, label)  # type: ignore[operator]
        for report in self.reports():
            self.meters[f"{stage}/forward"].add(report)
        return nn.functional.cross_entropy(logits, label)

    def _log_training(self) -> None:
        accuracy = self.accuracies["train_accuracy"].compute()  # type: ignore[operator]
        loss = torch.stack(self._losses).mean()
        forward, backward = self.meters["train/forward"].read(), self.meters["train/backward"].read()
        self.log_dict(
            {"train/loss": loss, "train/accuracy": accuracy}
            | {f"train/forward_{name}": value for name, value in forward.items()}
            | {f"train/backward_{name}": value for name, value in backward.items()}
        )
        bar = {name: forward[name] for name in ("steps", "residual") if name in forward}
        self.log_dict({"loss": loss} | bar, prog_bar=True, logger=False)
        self._restart()

    def _restart(self) -> None:
        self._losses = []
        self.accuracies["train_accuracy"].reset()  # type: ignore[operator]

    def _evaluation_step(self, stage: Stage, batch: Batch) -> None:
        loss = self._evaluate(stage, batch)
        self.log(f"{stage}/loss", loss, batch_size=len(batch[1]), sync_dist=True)
        accuracy: Any = self.accuracies[f"{stage}_accuracy"]
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, on_step=False, on_epoch=True)

    def _log_solves(self, stage: Stage) -> None:
        figures = self.meters[f"{stage}/forward"].read()
        self.log_dict({f"{stage}/forward_{name}": value for name, value in figures.items()}, sync_dist=True)
        self._warn_of_failures(stage)

    def _warn_of_failures(self, stage: Stage) -> None:
        fractions = {name: meter.finish_epoch() for name, meter in self.meters.items() if name.startswith(stage)}
        failures = [
            f"{100 * value:.3g} % of its {name.rpartition('/')[2]} solves" for name, value in fractions.items() if value
        ]
        if failures:
            rank_zero_warn(
                f"{stage}, epoch {self.current_epoch}: {' and '.join(failures)} did not converge. Try more max_steps, "
                "a looser rtol, another solver; torchimplicit report shows where it stands.",
                category=ConvergenceWarning,
            )

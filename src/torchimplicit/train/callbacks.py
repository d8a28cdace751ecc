"""What a run writes, it writes once it trains: a start that is refused leaves the files of the run as they are."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class ConfigFile(SaveConfigCallback):
    """Writes the configuration when training starts, not before a checkpoint has been restored."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes nothing yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        super().setup(trainer, pl_module, "fit")


class SaveOnceTrained(Callback):
    """Has `ModelCheckpoint(save_on_exception=True)` wait until training starts.

    An error before that finds the state half restored, weights without those of the optimiser, and the file to go on
    from would be overwritten by it.

    Attributes:
        begun: training has started.
    """

    def __init__(self) -> None:
        """Holds nothing back yet."""
        self.begun = False
        self._waiting: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Holds them back."""
        self._waiting = [each for each in trainer.checkpoint_callbacks if getattr(each, "save_on_exception", False)]
        self._let_save(False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets them save: all is restored."""
        self.begun = True
        self._let_save(True)

    def _let_save(self, allowed: bool) -> None:
        for each in self._waiting:
            each.save_on_exception = allowed

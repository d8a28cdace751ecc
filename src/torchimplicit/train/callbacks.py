"""What a run writes, it writes once it trains: a start that is refused leaves the files of the run as they are."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
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


class WeightAverage(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, which is what is validated, tested and kept as best.

    It resumes to the bit wherever it was interrupted, which Lightning's own does not: in validation it has exchanged
    the average and the weights in training, and between the optimiser's step and the end of a batch the average is one
    step behind. Not for sharded models.

    Args:
        decay: of the average in a step; it looks back on about `1 / (1 - decay)` steps.
        start: the first step, from 0 on, that counts; the average before it is what it was at the start.
    """

    def __init__(self, decay: float = 0.999, start: int = 0):
        """Averages nothing yet."""
        super().__init__(use_buffers=False, decay=decay, update_starting_at_step=start)
        self._exchanged = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the weights; without the warning that a model which could be sharded must not be."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*overrides the configure_model callback.*")
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes up both kinds of weights where training goes on; those of a checkpoint are the average elsewhere."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts things in order before somebody saves them: the weights in their place, the average up to date."""
        if self._average_model is None:
            return
        if self._exchanged:
            self._swap_models(pl_module)
        self.on_train_batch_end(trainer, pl_module, None, None, 0)

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._exchanged = not self._exchanged

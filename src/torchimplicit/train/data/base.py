"""What the data modules share: splits that depend on the seed alone, batches in an order that can be resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from torchimplicit.files import DataError as DataError
from torchimplicit.train.data.batches import Batches, Order

DATA_VARIABLE = "TORCHIMPLICIT_DATA"


class Splits(NamedTuple):
    """The three parts of a data set. `dataset.__getitems__(indices)` gives a whole batch."""

    train: Dataset
    val: Dataset
    test: Dataset


class RecipeData(LightningDataModule):
    """Base of the data modules: a subclass adds `load() -> Splits`.

    The order of an epoch, and what is random in its batches, follows from the seed and the epoch's number alone: a
    resumed run sees the batches that the interrupted one would have seen, from the one on where it was interrupted.
    Under DDP every process takes its share of that order.

    Args:
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.

    Attributes:
        num_workers: processes that fetch batches; 0 where the data is in memory, which is quickest then.
    """

    data_dir: str | None = None
    num_workers: int = 0

    def __init__(self, batch_size: int = 64, seed: int = 0):
        """Loads nothing yet."""
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.splits: Splits | None = None

    def load(self) -> Splits:
        """The three splits."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Loads the data, once."""
        if self.splits is None:
            self.splits = self.load()

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training split."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches of the test split."""
        return self._loader("test")

    def folder(self) -> Path | None:
        """Where the user's files are: `data_dir`, or what the variable says; None to use a hub."""
        place = self.data_dir or os.environ.get(DATA_VARIABLE)
        return Path(place) if place else None

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader:
        self.setup()
        dataset = getattr(self.splits, split)
        count, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if shuffle:
            order = Order(dataset, count, rank, self.seed, self.batch_size, self._done)
            return Batches(dataset, sampler=order, **self._fetching())
        return DataLoader(dataset, sampler=DistributedSampler(dataset, count, rank, shuffle=False), **self._fetching())

    def _fetching(self) -> dict[str, Any]:
        """What all loaders are told."""
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return {"batch_size": self.batch_size, "collate_fn": _whole, **workers}

    def _done(self) -> int:
        """How many batches of this epoch a run that is resumed has behind it."""
        trainer = self.trainer
        return trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer and trainer.training else 0


class FittingData(RecipeData):
    """Base of the data modules of a user's own files, which say how large a network for them is.

    A subclass adds `look`, and `sizes` for what came of it.

    Attributes:
        inferred: arguments that are found in the data where they are None. The command writes them into the
            configuration, so that a checkpoint knows them without the data.
        sized: the names of what `sizes` may give.
    """

    inferred: ClassVar[tuple[str, ...]] = ()
    sized: ClassVar[tuple[str, ...]] = ()

    def look(self) -> None:
        """Finds what was left open; reads no more of the data than that takes.

        Raises:
            DataError: the data is absent or not what it should be.
        """
        raise NotImplementedError

    def found(self) -> dict[str, Any]:
        """The arguments of `inferred`, as plain values."""
        found = {name: getattr(self, name) for name in self.inferred}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def sizes(self) -> dict[str, int]:
        """Sizes of the data by the names of the arguments that networks and modules have for them; after `look`."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line on what was found."""
        raise NotImplementedError

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes over what a checkpoint says of the data beyond its arguments. Nothing here."""


def require_parts(owner: object, validation: float, test: float) -> None:
    """Refuses parts of the data of which one is nothing, or which leave nothing to train on."""
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(
            f"{type(owner).__name__}(validation={validation}, test={test}): expected parts > 0, together less than 1"
        )


def permutation(count: int, seed: int) -> Tensor:
    """The numbers below `count` in an order that follows from the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _whole(batch: Any) -> Any:
    """What `__getitems__` gives is a batch already."""
    return batch

"""Data of the recipes: small images held in memory, with splits that depend on the seed alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from torchimplicit.core.status import ImplicitError
from torchimplicit.train.idx import read_idx

DATA_VARIABLE = "TORCHIMPLICIT_DATA"


class DataError(ImplicitError, RuntimeError):
    """A recipe's data is absent, unreadable or not what it should be."""


class Images(Dataset):
    """Images `(N, ...)` as bytes and their labels `(N,)`; a batch is converted to floats when it is taken."""

    def __init__(self, images: Tensor, labels: Tensor, mean: float, std: float):
        """Keeps the tensors; `mean` and `std` are in units of the bytes."""
        self.images, self.labels, self.mean, self.std = images, labels.long(), mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.images[index].float() - self.mean) / self.std, self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: far quicker than image by image."""
        chosen = torch.tensor(indices)
        return (self.images[chosen].float() - self.mean) / self.std, self.labels[chosen]


class Splits(NamedTuple):
    """The three parts of a data set."""

    train: Images
    val: Images
    test: Images


class ImageData(LightningDataModule):
    """Base of the image data modules: a subclass adds `load() -> Splits`.

    The order of an epoch follows from the seed and the epoch's number alone, so that a resumed run sees the batches
    that the interrupted one would have seen. Under DDP every process takes its share of that order.

    Args:
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
    """

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

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader:
        self.setup()
        dataset = getattr(self.splits, split)
        count, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = DistributedSampler(dataset, count, rank, shuffle=shuffle, seed=self.seed)
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, collate_fn=_whole)


class Digits(ImageData):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8: nothing to download. 1,257 / 180 / 360 samples.

    Args:
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
    """

    def __init__(self, batch_size: int = 64, seed: int = 0):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.save_hyperparameters()

    def load(self) -> Splits:
        """The splits, at random but fixed."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)  # type: ignore[attr-defined]
        labels = torch.from_numpy(bunch.target)  # type: ignore[attr-defined]
        order = _permutation(len(labels), seed=0)
        test, rest = order[:360], order[360:]
        rest = rest[_permutation(len(rest), self.seed)]
        return Splits(*(Images(images[part], labels[part], 4.9, 6.0) for part in (rest[180:], rest[:180], test)))


class MNIST(ImageData):
    """MNIST, 28 x 28: 55,000 / 5,000 / 10,000 samples, from files or from the Hugging Face hub.

    Args:
        data_dir: folder with the four idx files, gzipped or not, or with a folder `mnist` that has them. None looks at
            the environment variable `TORCHIMPLICIT_DATA`, and where that is unset downloads `ylecun/mnist`.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling.
        validation: samples held out of the training set.
    """

    def __init__(self, data_dir: str | None = None, batch_size: int = 64, seed: int = 0, validation: int = 5000):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.validation = data_dir, validation
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def prepare_data(self) -> None:
        """Downloads, in one process of the machine, where there is no folder to read."""
        if self._folder() is None:
            _from_hub("test")

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the files are absent or broken, or the hub is out of reach.
        """
        folder = self._folder()
        read = _from_hub if folder is None else _from_folder(Path(folder))
        (images, labels), test = read("train"), read("test")
        if not 0 < self.validation < len(labels):
            raise DataError(f"MNIST(validation={self.validation}): expected more than 0 and less than {len(labels)}")
        order = _permutation(len(labels), self.seed)
        val, train = order[: self.validation], order[self.validation :]
        parts = ((images[train], labels[train]), (images[val], labels[val]), test)
        return Splits(*(Images(*part, 33.3184, 78.5675) for part in parts))

    def _folder(self) -> str | None:
        return self.data_dir or os.environ.get(DATA_VARIABLE) or None


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _whole(batch: Any) -> tuple[Tensor, Tensor]:
    """What `Images.__getitems__` gives is a batch already."""
    return batch


def _from_folder(folder: Path):
    """`read(split) -> images, labels` for the idx files in a folder, or in its folder `mnist`."""

    def read(split: str) -> tuple[Tensor, Tensor]:
        stem = {"train": "train", "test": "t10k"}[split]
        images = _read_idx(_find(folder, f"{stem}-images-idx3-ubyte"))
        labels = _read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"))
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise DataError(
                f"MNIST, {split}: got images {tuple(images.shape)} and labels {tuple(labels.shape)} in {folder}, "
                "expected (N, height, width) and (N,). Try the original four files."
            )
        return images.unsqueeze(1), labels

    return read


def _find(folder: Path, name: str) -> Path:
    places = [folder, folder / "mnist"]
    try:
        for path in (place / file for place in places for file in (f"{name}.gz", name)):
            if path.is_file():
                return path
        missing = f"found no {name}(.gz)" if folder.is_dir() else "no such folder"
    except OSError as error:
        missing = error.strerror or str(error)
    raise DataError(
        f"MNIST: looked in {' and '.join(map(str, places))}: {missing}. Try --data-dir (or the variable "
        f"{DATA_VARIABLE}) with a folder that holds the four idx files, or neither, to download them."
    )


def _read_idx(path: Path) -> Tensor:
    try:
        return read_idx(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"MNIST: cannot read {path}: {reason}. Expected an idx file, gzipped or not. Try to fetch it again, and to "
            "look at its permissions."
        ) from error


def _from_hub(split: str) -> tuple[Tensor, Tensor]:
    """Images `(N, 1, 28, 28)` and labels `(N,)` from the Hugging Face hub, or from its cache on this disk."""
    from datasets import load_dataset

    try:
        table = load_dataset("ylecun/mnist", split=split).with_format("torch")  # type: ignore[union-attr]
        columns = table[:]
    except Exception as error:  # the client raises errors of many packages: all mean that there is no data
        raise DataError(
            f"MNIST: could not get ylecun/mnist from the Hugging Face hub ({type(error).__name__}: {error}). Try "
            f"--data-dir (or the variable {DATA_VARIABLE}) with a folder that holds the four idx files, or look "
            "at the connection."
        ) from error
    return columns["image"].to(torch.uint8).reshape(-1, 1, 28, 28), columns["label"]  # type: ignore[index]

"""MNIST, from the idx files in which it is published or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from torchimplicit.files import reading
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, Splits
from torchimplicit.train.data.idx import read_idx
from torchimplicit.train.data.images import ImageData, Images, Part, from_hub
from torchimplicit.train.data.pictures import PictureFormat

MEAN, STD = 33.3184, 78.5675  # of the training set, in units of the bytes


class MNIST(ImageData):
    """MNIST, 28 x 28: 55,000 / 5,000 / 10,000 samples, from files or from the Hugging Face hub.

    Args:
        data_dir: folder with the four idx files, gzipped or not, or with a folder `mnist` that has them. None looks at
            the environment variable `TORCHIMPLICIT_DATA`, and where that is unset downloads `ylecun/mnist`.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling.
        validation: samples held out of the training set.
        shift: moves training images by up to so many pixels in each direction, at random.
    """

    classes = 10

    def __init__(
        self, data_dir: str | None = None, batch_size: int = 64, seed: int = 0, validation: int = 5000, shift: int = 0
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.validation, self.shift = data_dir, validation, shift
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def prepare_data(self) -> None:
        """Downloads, in one process of the machine, where there is no folder to read."""
        if self.folder() is None:
            _hub("test")

    def format(self) -> PictureFormat:
        """28 x 28, white on black."""
        return PictureFormat("grey", (28, 28), (MEAN,), (STD,))

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the files are absent or broken, or the hub is out of reach.
        """
        folder = self.folder()
        read = _hub if folder is None else _from_folder(folder)
        (images, labels), test = read("train"), read("test")
        train, val = self.held_out(len(labels))
        parts = ((images[train], labels[train], self.shift), (images[val], labels[val], 0), (*test, 0))
        return Splits(*(Images(x, y, MEAN, STD, shift) for x, y, shift in parts))


def _from_folder(folder: Path):
    """`read(split) -> images, labels` for the idx files in a folder, or in its folder `mnist`."""

    def read(split: str) -> Part:
        stem = {"train": "train", "test": "t10k"}[split]
        images = _read_idx(_find(folder, f"{stem}-images-idx3-ubyte"))
        labels = _read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"))
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not len(images):
            raise DataError(
                f"MNIST, {split}: got images {tuple(images.shape)} and labels {tuple(labels.shape)} in {folder}, "
                "expected (N, 28, 28) and (N,). Try the original four files."
            )
        if int(labels.max()) >= MNIST.classes:
            raise DataError(
                f"MNIST, {split}: got label {int(labels.max())} in {folder}, expected labels below {MNIST.classes}."
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
    hint = "Expected an idx file, gzipped or not. Try to fetch it again, and to look at its permissions."
    with reading("MNIST", path, hint):
        return read_idx(path)


def _hub(split: str) -> Part:
    return from_hub("MNIST", "ylecun/mnist", split, (1, 28, 28), "image", "the four idx files")

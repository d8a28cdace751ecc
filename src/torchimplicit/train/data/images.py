"""Labelled images: normalised, moved and mirrored batch by batch; from the hub where there are no files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, permutation
from torchimplicit.train.data.pictures import PictureFormat

Part = tuple[Tensor, Tensor]  # images (N, C, H, W) as bytes, labels (N,)


class Images(Dataset):
    """Images `(N, C, H, W)` as bytes and their labels `(N,)`; a batch is converted to floats when it is taken.

    Args:
        images: bytes.
        labels: whole numbers.
        mean: in units of the bytes; a number, or one a channel.
        std: likewise.
        shift: where > 0, every image is moved by up to so many pixels in each direction, at random.
        flip: mirrors every other image, at random.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: float | tuple[float, ...],
        std: float | tuple[float, ...],
        shift: int = 0,
        flip: bool = False,
    ):
        """Keeps the tensors."""
        self.images, self.labels, self.shift, self.flip = images, labels.long(), shift, flip
        self.mean, self.std = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: far quicker than image by image."""
        chosen = torch.tensor(indices)
        images = (self.images[chosen].float() - self.mean) / self.std
        return augmented(images, self.shift, self.flip), self.labels[chosen]


class ImageData(RecipeData):
    """Base of the data modules of labelled images: a subclass adds `classes` and `load() -> Splits`."""

    classes: int
    validation: int

    def format(self) -> PictureFormat:
        """How the network takes pictures, for files that are not of the data set."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Of the classes."""
        return [str(number) for number in range(self.classes)]

    def held_out(self, count: int) -> tuple[Tensor, Tensor]:
        """Which of `count` training samples train, and which validate, by the seed.

        Raises:
            DataError: none would be left for one of the two.
        """
        if not 0 < self.validation < count:
            owner = type(self).__name__
            raise DataError(f"{owner}(validation={self.validation}): expected more than 0 and less than {count}")
        order = permutation(count, self.seed)
        return order[self.validation :], order[: self.validation]


def from_hub(owner: str, name: str, split: str, shape: tuple[int, ...], image: str, files: str) -> Part:
    """A split from the Hugging Face hub, or from its cache on this disk.

    Args:
        owner: whose data it is, for the error.
        name: of the repository.
        split: "train" or "test".
        shape: of an image.
        image: the name of their column.
        files: what a folder would have to hold, for the error.

    Raises:
        DataError: the hub is out of reach.
    """
    from datasets import load_dataset

    try:
        table = load_dataset(name, split=split).with_format("torch")
        columns: Any = table[:]
        images, labels = columns[image], columns["label"]
    except Exception as error:  # the client raises errors of many packages: all mean that there is no data
        raise DataError(
            f"{owner}: could not get {name} from the Hugging Face hub ({type(error).__name__}: {error}). Try "
            f"--data-dir (or the variable {DATA_VARIABLE}) with a folder that holds {files}, or look at the connection."
        ) from error
    images = images if isinstance(images, Tensor) else torch.stack(list(images))
    return images.to(torch.uint8).reshape(-1, *shape), labels


def augmented(images: Tensor, shift: int, flip: bool) -> Tensor:
    """Images moved and mirrored at random; see `Images`."""
    if shift:
        images = _shifted(images, shift)
    if flip:
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    return images


def _shifted(images: Tensor, reach: int) -> Tensor:
    """Every image moved by its own random offset; what comes in from outside repeats the border."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, [reach] * 4, mode="replicate")
    rows, columns = (torch.randint(2 * reach + 1, (len(images), 1)) + torch.arange(n) for n in (height, width))
    which = torch.arange(len(images)).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[which, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)

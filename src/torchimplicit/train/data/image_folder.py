"""A user's own pictures: one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import require, require_count
from torchimplicit.files import reading
from torchimplicit.train.data.base import DataError, FittingData, Splits, require_parts
from torchimplicit.train.data.class_folders import Listed, divided
from torchimplicit.train.data.images import ImageData, Images, augmented
from torchimplicit.train.data.pictures import SUFFIXES, Colour, PictureFormat, facts_of, pixels_of

HINT = f"Expected a picture ({', '.join(SUFFIXES)}). Try to open it, or take it out of the folder."
LARGEST = 2**32  # bytes of pixels that are kept in memory
MEASURED = 512  # pictures at most whose mean and deviation are taken


class ImageFolder(ImageData, FittingData):
    """Pictures in one folder a class, `photos/cats/*.jpg`, `photos/dogs/*.jpg`; classes are named by the folders.

    Where the folder has `train` and `test` (and `val`), each with the folders of the classes, these are the splits.
    Otherwise parts of every class are set aside, at random but fixed. Pictures are turned as the camera says. Every
    file is looked at before anything is trained, and named if it cannot be read.

    Args:
        path: of the folder.
        size: of the pictures that the network sees, height and width, or one number for both: the middle of each is
            cut to that shape and scaled. None takes their own, which must be the same for all.
        colour: "grey" or "rgb"; None takes "grey" where no picture has colours.
        labels: names of the classes, in the order of their numbers. None takes the folders, sorted by name.
        mean: of the training pictures, in units of the bytes, one a channel. None measures it.
        std: likewise.
        validation: part of every class (of what is left of `train`) that validates.
        test: part of every class that is the test split; not used where there is a folder of this name.
        shift: moves training pictures by up to so many pixels in each direction, at random.
        flip: mirrors every other training picture, at random.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
        num_workers: processes that read files. 0 reads all once and keeps them in memory; more are for folders that
            do not fit there, and read every file in every epoch.
    """

    inferred: ClassVar[tuple[str, ...]] = ("size", "colour", "labels", "mean", "std")
    sized: ClassVar[tuple[str, ...]] = ("in_channels", "classes", "image")

    def __init__(
        self,
        path: str,
        size: int | tuple[int, int] | None = None,
        colour: Colour | None = None,
        labels: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        shift: int = 0,
        flip: bool = False,
        batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.path = path
        # What may be None is settled by `look`.
        self.size: Any = (size, size) if isinstance(size, int) else None if size is None else tuple(size)
        self.colour: Any = colour
        self.labels: Any = labels
        self.mean: Any = mean
        self.std: Any = std
        self.part, self.tested = validation, test
        self.shift, self.flip, self.num_workers = shift, flip, num_workers
        require(self, "size", size is None or min(self.size or ()) > 0, "numbers of pixels > 0")
        require(self, "colour", colour in (None, "grey", "rgb"), "'grey' or 'rgb'")
        require_parts(self, validation, test)
        require_count(self, "num_workers", "shift", least=0)
        self._pixels: dict[Path, Tensor] = {}
        self._listed: dict[str, Listed] = {}

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.labels or ())

    def format(self) -> PictureFormat:
        """How the network takes pictures."""
        return PictureFormat(self.colour, self.size, self.mean, self.std)

    def names(self) -> list[str]:
        """Of the classes."""
        return list(self.labels or ())

    def sizes(self) -> dict[str, int]:
        """Channels, classes, and the longer edge."""
        return {
            "in_channels": 1 if self.colour == "grey" else 3,
            "classes": self.classes,
            "image": max(self.size or (0,)),
        }

    def describe(self) -> str:
        """Classes, pictures and splits."""
        height, width = self.size or (0, 0)
        counts = " + ".join(str(len(each.paths)) for each in self._listed.values())
        return (
            f"{self.classes} classes ({', '.join(self.names()[:8])}{', ...' if self.classes > 8 else ''}), "
            f"{counts} pictures (train + val + test), {self.colour}, {height} x {width}"
        )

    def look(self) -> None:
        """Finds files, classes, size and colours, and measures mean and deviation.

        Raises:
            DataError: there are no such files, or they are not what they should be.
        """
        if self._listed:
            return
        self.labels, self._listed = divided(Path(self.path), self.labels, self.part, self.tested, self.seed)
        paths = [path for each in self._listed.values() for path in each.paths]
        self._settle_shape(paths)
        train = self._listed["train"].paths
        if not self.num_workers:
            needed = len(paths) * (1 if self.colour == "grey" else 3) * self.size[0] * self.size[1]
            if needed > LARGEST:
                raise DataError(
                    f"ImageFolder: {len(paths)} pictures of {self.size[0]} x {self.size[1]} pixels are {needed} bytes, "
                    f"expected at most {LARGEST} in memory. Try a smaller --data.size, or --data.num_workers 4."
                )
            self._pixels = {path: self._read(path) for path in paths}
        if self.mean is None or self.std is None:
            shown = train[:: -(-len(train) // MEASURED)]  # however many processes there are
            self.mean, self.std = _measured([self._taken(path) for path in shown])

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: see `look`.
        """
        self.look()
        splits = Splits(*(self._dataset(name) for name in Splits._fields))
        self._pixels = {}
        return splits

    def _dataset(self, split: str) -> Dataset:
        paths, labels = self._listed[split]
        moved = (self.shift, self.flip) if split == "train" else (0, False)
        if self.num_workers:
            return PictureFiles(paths, labels, self.format(), *moved)
        pixels = torch.stack([self._taken(path) for path in paths])
        return Images(pixels, torch.tensor(labels), tuple(self.mean), tuple(self.std), *moved)

    def _read(self, path: Path) -> Tensor:
        with reading("ImageFolder", path, HINT):
            return pixels_of(path, self.colour, self.size)

    def _taken(self, path: Path) -> Tensor:
        return self._pixels[path] if path in self._pixels else self._read(path)

    def _settle_shape(self, paths: Sequence[Path]) -> None:
        facts = {}
        for path in paths:
            with reading("ImageFolder", path, HINT):
                facts[path] = facts_of(path)
        if self.colour is None:
            self.colour = "grey" if all(each.grey for each in facts.values()) else "rgb"
        if self.size is None:
            first = paths[0]
            other = next((path for path in paths if facts[path].size != facts[first].size), None)
            if other is not None:
                (h, w), (height, width) = facts[first].size, facts[other].size
                raise DataError(
                    f"ImageFolder: {first} has {h} x {w} pixels, {other} {height} x {width}, expected one size. "
                    "Try --data.size 64, to which all are cut and scaled."
                )
            self.size = facts[first].size


class PictureFiles(Dataset):
    """Pictures that are read when they are wanted, by whichever process wants them.

    Args:
        paths: of the files.
        labels: numbers of their classes.
        format: how the network takes them.
        shift: see `Images`.
        flip: see `Images`.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], format: PictureFormat, shift: int = 0, flip: bool = False
    ):
        """Reads nothing yet."""
        self.paths, self.labels, self.format = paths, torch.tensor(labels), format
        self.shift, self.flip = shift, flip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch, not moved nor mirrored yet."""
        pictures = []
        for index in indices:
            with reading("ImageFolder", self.paths[index], HINT):
                pictures.append(self.format.read(self.paths[index]))
        return torch.stack(pictures), self.labels[indices]

    def finish(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Moves and mirrors the pictures of a batch for training, at random."""
        return augmented(batch[0], self.shift, self.flip), batch[1]


def _measured(pixels: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and deviation of every channel, to two digits behind the point: they are written into configurations."""
    sums = torch.stack([each.flatten(1).double().mean(1) for each in pixels]).mean(0)
    squares = torch.stack([each.flatten(1).double().square().mean(1) for each in pixels]).mean(0)
    deviation = (squares - sums.square()).clamp(min=0).sqrt().clamp(min=1.0)
    return [round(value, 2) for value in sums.tolist()], [round(value, 2) for value in deviation.tolist()]

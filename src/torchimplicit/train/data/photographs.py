"""Photographs of a folder, blurred: crops of them, what a blur and noise leave, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.files import read_picture, reading
from torchimplicit.imaging import Blur, GaussianNoise, Operator
from torchimplicit.imaging.physics.blur import Border
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, Splits, permutation
from torchimplicit.train.data.kernels import GaussianKernel, Kernel
from torchimplicit.train.data.measurement import Measured, Measurement
from torchimplicit.train.seeds import seed_of

FOLDER = "kodak"
SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB"}
MOST = 2**32  # bytes of pixels that are held in memory
HINT = "Expected PNG or JPEG pictures of 8 bits."


class BlurredPhotographs(RecipeData):
    """Crops of photographs, blurred and noisy, to be made sharp; pixels are in [0, 1].

    Photographs are split whole, in the order of their names: the last ones are the test split, and of the others the
    seed chooses some to validate. Training crops are cut at random places, in one of their eight positions, and their
    noise is drawn anew every time; the crops to validate and to test are one of every photograph, at one place, with
    noise that is always the same. Whatever is random of a batch follows from seed, epoch and place. All photographs
    are held in memory, a byte a number.

    Args:
        data_dir: folder of PNG and JPEG files, or one with a folder `kodak` of such. None looks at the environment
            variable `TORCHIMPLICIT_DATA`.
        batch_size: crops a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
        kernel: of the blur.
        border: what lies beyond the border of an image, see `imaging.Blur`.
        noise: standard deviation of the noise, >= 0, of pixels in [0, 1].
        channels: 1 for grey, 3 for colours.
        crop: edge of the training crops.
        samples: training crops an epoch.
        validation: photographs held out of the training.
        test: photographs of the test split.
        evaluated: edge of the crops to validate and to test.
        corner: row and column of their upper left corner; None for the middle of a photograph.

    Raises:
        ValueError: an option is impossible.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 4,
        seed: int = 0,
        kernel: Kernel = GaussianKernel(),
        border: Border = "valid",
        noise: float = 0.005,
        channels: int = 1,
        crop: int = 44,
        samples: int = 400,
        validation: int = 2,
        test: int = 4,
        evaluated: int = 132,
        corner: tuple[int, int] | None = None,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.kernel, self.noise = data_dir, kernel, noise
        self.border: Border = border
        self.channels, self.crop, self.samples = channels, crop, samples
        self.validation, self.test, self.evaluated = validation, test, evaluated
        self.corner: Any = None if corner is None else tuple(corner)
        require_count(self, "crop", "samples", "validation", "test", "evaluated")
        require(self, "channels", channels in MODES, "1 for grey, or 3 for colours")
        require(self, "noise", is_number(noise) and 0 <= noise < float("inf"), "a finite number >= 0")
        fits = self.corner is None or (len(self.corner) == 2 and all(type(n) is int and n >= 0 for n in self.corner))
        require(self, "corner", fits, "None, or row and column >= 0")
        for name in ("crop", "evaluated"):
            edge = getattr(self, name)
            require(self, name, edge > kernel.size, f"more pixels than the kernel has, {kernel.size}")

    def operator(self) -> Operator:
        """What measures the crops; a subclass may give another one, of all samples alike."""
        return Blur(self.kernel.weights(), self.border)

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: there are no photographs, or some are broken, or too few, or too small for the crops.
        """
        paths = self._paths()
        kept = len(paths) - self.test
        if kept - self.validation < 1:
            raise DataError(
                f"BlurredPhotographs(validation={self.validation}, test={self.test}): got {len(paths)} photographs in "
                f"{paths[0].parent}, expected at least one more than these two together"
            )
        pictures = _read(paths, MODES[self.channels])
        order = permutation(kept, self.seed).tolist()
        val, train = (sorted(part) for part in (order[: self.validation], order[self.validation :]))
        self._check(paths, pictures, set(train))
        op, noise = self.operator(), GaussianNoise(self.noise)
        evaluated = [self._evaluated([pictures[i] for i in part], op, noise) for part in (val, range(kept, len(paths)))]
        return Splits(Crops([pictures[i] for i in train], op, noise, self.crop, self.samples), *evaluated)

    def _paths(self) -> list[Path]:
        folder = self.folder()
        places = [] if folder is None else [folder, folder / FOLDER]
        for place in places:
            if place.is_dir():
                found = [path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
                if found:
                    return sorted(found, key=lambda path: path.name)
        looked = f"no PNG or JPEG in {' and '.join(map(str, places))}" if places else "no folder to look in"
        raise DataError(
            f"BlurredPhotographs: {looked}. Try --data-dir (or the variable {DATA_VARIABLE}) with a folder of "
            f"photographs, or with one that has them in a folder {FOLDER}."
        )

    def _check(self, paths: list[Path], pictures: list[Tensor], train: set[int]) -> None:
        """Refuses photographs that the crops do not fit into."""
        for i, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
            name, edge = ("crop", self.crop) if i in train else ("evaluated", self.evaluated)
            row, column = self.corner if self.corner is not None and i not in train else (0, 0)
            height, width = picture.shape[1:]
            if row + edge > height or column + edge > width:
                at = f" at the corner ({row}, {column})" if row or column else ""
                raise DataError(
                    f"BlurredPhotographs({name}={edge}): got {height} x {width} pixels in {path}, expected room for "
                    f"crops of {edge} x {edge}{at}. Try a smaller {name}{', or corner: null' if at else ''}, or leave "
                    "the file out."
                )

    def _evaluated(self, pictures: Sequence[Tensor], op: Operator, noise: GaussianNoise) -> Measured:
        target = torch.stack([_placed(picture, self.evaluated, self.corner) for picture in pictures]).float() / 255
        seeds = torch.tensor([seed_of("photograph", i) for i in range(len(target))])
        return Measured(noise(op.A(target), seeds), op, target)


class Crops(Dataset):
    """Random square pieces of pictures, measured; batches are a `Measurement`.

    Numbers are drawn from torch's generator, those of the noise by a seed for every sample.

    Args:
        pictures: bytes, `(C, H, W)` each, of any sizes.
        op: measures the pieces.
        noise: of the measurements.
        edge: of the pieces.
        count: pieces an epoch; which picture one comes from is drawn, too.
    """

    def __init__(self, pictures: Sequence[Tensor], op: Operator, noise: GaussianNoise, edge: int, count: int):
        """Keeps the pictures."""
        self.pictures, self.op, self.noise, self.edge, self.count = list(pictures), op, noise, edge, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Measurement:
        """One sample, without the dimension of a batch in tensors."""
        y, op, target, _ = self.__getitems__([index])
        assert target is not None
        return Measurement(y[0], op, target[0])

    def __getitems__(self, indices: Sequence[int]) -> Measurement:
        """A whole batch at once."""
        target = torch.stack([self._piece(part) for part in torch.rand(len(indices), 6).tolist()]).float() / 255
        seeds = torch.randint(2**63 - 1, (len(indices),))
        return Measurement(self.noise(self.op.A(target), seeds), self.op, target)

    def _piece(self, part: list[float]) -> Tensor:
        """A piece of a picture in one of its eight positions, by six numbers in [0, 1)."""
        picture = self.pictures[int(part[0] * len(self.pictures))]
        row, column = (int(part[axis] * (picture.shape[axis] - self.edge + 1)) for axis in (1, 2))
        piece = picture[:, row : row + self.edge, column : column + self.edge]
        piece = piece.flip([axis for axis in (1, 2) if part[2 + axis] < 0.5])
        return piece.mT if part[5] < 0.5 else piece


def _placed(picture: Tensor, edge: int, corner: tuple[int, int] | None) -> Tensor:
    height, width = picture.shape[1:]
    row, column = ((height - edge) // 2, (width - edge) // 2) if corner is None else corner
    return picture[:, row : row + edge, column : column + edge]


def _read(paths: Sequence[Path], mode: str) -> list[Tensor]:
    """The pictures as bytes, `(C, H, W)` each."""
    pictures: list[Tensor] = []
    held = 0
    for path in paths:
        with reading("BlurredPhotographs", path, HINT):
            pixels = read_picture(path, mode)
            assert pixels is not None  # no size was asked for
            held += pixels.size
            if held > MOST:
                raise ValueError(f"together with those before it more than {MOST} bytes of pixels")
            pictures.append(torch.from_numpy(np.array(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))))
    return pictures

"""Volumes with labels, and pairs of them to register: hippocampi in MR, or somebody's own NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.files import read_arrays, reading
from torchimplicit.imaging import read_nifti, register
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, Splits, permutation

ARCHIVE, FOLDER = "hippocampus.npz", "hippocampus"
FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
SOURCE = "http://medicaldecathlon.com"
HINT = f"Try to fetch it again from {SOURCE}, Task04_Hippocampus."
EIGHT = 8  # what sizes are multiples of, so that they can be halved three times
AT_ONCE = 8  # pairs


class Volume(NamedTuple):
    """An image and what it shows.

    Attributes:
        name: of its file.
        image: `(X, Y, Z)` float32.
        labels: `(X, Y, Z)` int64, 0 for the background.
        spacing: edges of a voxel in millimetres.
    """

    name: str
    image: Tensor
    labels: Tensor
    spacing: tuple[float, ...]


class ImagePair(NamedTuple):
    """A batch of pairs to register.

    Attributes:
        fixed: `(B, 1, X, Y, Z)`.
        moving: the same.
        fixed_labels: `(B, 1, X, Y, Z)` int64.
        moving_labels: the same.
        matrix: the affine registration to start from, `(B, 4, 4)` float64: `register.Linear(matrix)`.
        spacing: edges of a voxel in millimetres.
    """

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor
    matrix: Tensor
    spacing: tuple[float, ...]


class ImagePairs(Dataset):
    """Pairs of volumes, each registered affinely when it is asked for the first time.

    Args:
        volumes: of one spacing; smaller ones are put into the middle of zeros, as large as the largest.
        pairs: numbers of a fixed and of a moving one.
        size: of all; None for the least multiples of 8 that hold them.
    """

    def __init__(self, volumes: Sequence[Volume], pairs: Sequence[tuple[int, int]], size: Sequence[int] | None = None):
        """Puts the volumes on one grid.

        Raises:
            DataError: their voxels differ.
        """
        self.pairs, self.spacing = list(pairs), volumes[0].spacing
        for each in volumes:
            if not np.allclose(each.spacing, self.spacing, rtol=1e-2):
                raise DataError(
                    f"ImagePairs: {each.name} has voxels of {each.spacing} mm, {volumes[0].name} of {self.spacing}; "
                    "expected one spacing. Try to resample them"
                )
        size = size_of(volumes) if size is None else size
        self.images = torch.stack([centred(each.image, size) for each in volumes]).unsqueeze(1)
        self.labels = torch.stack([centred(each.labels, size) for each in volumes]).unsqueeze(1)
        self._affine: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> ImagePair:
        """One pair, a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> ImagePair:
        """A whole batch at once."""
        fixed, moving = (list(numbers) for numbers in zip(*(self.pairs[i] for i in indices), strict=True))
        missing = [i for i in indices if i not in self._affine]
        for start in range(0, len(missing), AT_ONCE):
            self._register(missing[start : start + AT_ONCE])
        return ImagePair(
            self.images[fixed],
            self.images[moving],
            self.labels[fixed],
            self.labels[moving],
            torch.stack([self._affine[i] for i in indices]),
            self.spacing,
        )

    def _register(self, indices: Sequence[int]) -> None:
        fixed, moving = (list(numbers) for numbers in zip(*(self.pairs[i] for i in indices), strict=True))
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # batches may be asked for within it: least squares has slopes
            found = register.align(
                self.images[fixed], self.images[moving], register.Affine(), spacing=self.spacing, on_failure="warn"
            )
        transform = found.transform
        assert isinstance(transform, register.Linear)
        self._affine.update(zip(indices, transform.matrix, strict=True))


class Hippocampus(RecipeData):
    """Pairs of hippocampi in MR, labelled 1 (anterior) and 2 (posterior), of different subjects; or of other volumes.

    Subjects are taken in the order of their names: the last ones test, those before validate, and all others train, in
    pairs that differ from epoch to epoch in their order alone. Where the test subjects are 60, its pairs are those of
    the figures in the documentation. A pair is registered affinely when it is first needed, by its images alone.

    Args:
        data_dir: a folder with `imagesTr` and `labelsTr`, or `images` and `labels`, of NIfTI files of the same names,
            as the Medical Segmentation Decathlon has them, of any organ; or with `hippocampus.npz` (arrays `names`,
            and `img_NAME`, `seg_NAME` each); or with a folder `hippocampus` that has one of them. None looks at the
            environment variable `TORCHIMPLICIT_DATA`.
        batch_size: pairs a batch, in every process.
        seed: of the pairs, and of the shuffling.
        validation: subjects that validate.
        test: subjects that test.
        validation_pairs: of these.
        test_pairs: of those.
        rounds: in how many training pairs every subject is.

    Attributes:
        labels: which ones there are, without the background; once it is loaded.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 2,
        seed: int = 0,
        validation: int = 10,
        test: int = 60,
        validation_pairs: int = 8,
        test_pairs: int = 40,
        rounds: int = 1,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.validation, self.test = data_dir, validation, test
        self.validation_pairs, self.test_pairs, self.rounds = validation_pairs, test_pairs, rounds
        self.labels: list[int] = []
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the files are absent or broken, or too few for the splits.
        """
        volumes = read_volumes(self.folder())
        train = len(volumes) - self.test - self.validation
        if min(self.test, self.validation, train) < 2:
            raise DataError(
                f"Hippocampus(validation={self.validation}, test={self.test}): expected 2 or more each, and 2 or more "
                f"left of the {len(volumes)} volumes to train on"
            )
        self.labels = sorted({int(each) for volume in volumes for each in volume.labels.unique()} - {0})
        size = size_of(volumes)
        order = [permutation(train, self.seed + turn).tolist() for turn in range(self.rounds)]
        pairs = [pair for turn in order for pair in zip(turn[::2], turn[1::2], strict=False)]
        held = volumes[train : train + self.validation], volumes[train + self.validation :]
        counts = self.validation_pairs, self.test_pairs
        val, test = (ImagePairs(v, random_pairs(len(v), n), size) for v, n in zip(held, counts, strict=True))
        return Splits(ImagePairs(volumes[:train], pairs, size), val, test)


def read_volumes(folder: Path | None) -> list[Volume]:
    """The volumes of a folder, by name; see `Hippocampus`.

    Raises:
        DataError: there are none, or some is broken.
    """
    places = [] if folder is None else [folder, folder / FOLDER]
    for place in places:
        for names in FOLDERS:
            if all((place / name).is_dir() for name in names):
                return _read_folders(*(place / name for name in names))
        if (place / ARCHIVE).is_file():
            return _read_archive(place / ARCHIVE)
    looked = f"looked in {' and '.join(map(str, places))}" if places else "no folder to look in"
    raise DataError(
        f"Hippocampus: {looked} for imagesTr and labelsTr, images and labels, or {ARCHIVE}. Try Task04_Hippocampus of "
        f"{SOURCE} (CC BY-SA 4.0), and --data-dir (or the variable {DATA_VARIABLE}) with its folder."
    )


def size_of(volumes: Sequence[Volume]) -> tuple[int, ...]:
    """The least multiples of 8 that hold all volumes."""
    return tuple(-(-max(sizes) // EIGHT) * EIGHT for sizes in zip(*(each.image.shape for each in volumes), strict=True))


def centred(x: Tensor, size: Sequence[int]) -> Tensor:
    """An array in the middle of zeros."""
    found = x.new_zeros(*size)
    found[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(size, x.shape, strict=True))] = x
    return found


def random_pairs(count: int, wanted: int) -> list[tuple[int, int]]:
    """Ordered pairs of different numbers below `count`, none twice; the same ones always."""
    rng, found = np.random.default_rng(0), []
    wanted = min(wanted, count * (count - 1))
    while len(found) < wanted:
        i, j = (int(each) for each in rng.choice(count, 2, replace=False))
        if (i, j) not in found:
            found.append((i, j))
    return found


def _read_archive(path: Path) -> list[Volume]:
    with reading("Hippocampus", path, HINT), np.load(path) as archive:
        names = sorted(name.removeprefix("img_") for name in archive.files if name.startswith("img_"))
        keys = [f"{kind}_{name}" for name in names for kind in ("img", "seg")]
        arrays = read_arrays(path, *keys)
        return [
            _volume(name, torch.from_numpy(image), torch.from_numpy(labels), (1.0, 1.0, 1.0))
            for name, image, labels in zip(names, arrays[::2], arrays[1::2], strict=True)
        ]


def _read_folders(images: Path, labels: Path) -> list[Volume]:
    found = []
    paths = sorted(path for path in images.iterdir() if path.name.endswith((".nii", ".nii.gz")) and path.name[0] != ".")
    for path in paths:
        image, seen = (read_nifti(each).reoriented("RAS") for each in (path, labels / path.name))
        with reading("Hippocampus", path, HINT):
            if not torch.allclose(image.affine, seen.affine, atol=1e-2):
                raise ValueError("its labels lie elsewhere, expected both on one grid")
            found.append(_volume(path.name, image.data, seen.data, image.spacing))
    if not found:
        raise DataError(f"Hippocampus: {images} has no NIfTI files, expected .nii or .nii.gz, and labels so named")
    return found


def _volume(name: str, image: Tensor, labels: Tensor, spacing: tuple[float, ...]) -> Volume:
    """A volume, looked at."""
    if image.ndim != 3 or image.shape != labels.shape:
        raise ValueError(
            f"{name}: an image {tuple(image.shape)} and labels {tuple(labels.shape)}, expected (X, Y, Z) of one size"
        )
    values = image.float()
    if not bool(values.isfinite().all()) or float(values.amax() - values.amin()) == 0.0:
        raise ValueError(f"{name}: an image with values that are not finite, or constant")
    whole = labels.long()
    if not torch.equal(whole.to(labels.dtype), labels) or not bool((whole > 0).any()) or bool((whole < 0).any()):
        raise ValueError(f"{name}: labels {labels.unique()[:5].tolist()}, expected whole numbers >= 0, and some above")
    return Volume(name, values, whole, spacing)

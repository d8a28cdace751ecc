"""Slices of a volume that move between two acquisitions: smooth known motion, other masks, other noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.status import Status
from torchimplicit.imaging import Fourier, GaussianNoise, cartesian, read_nifti
from torchimplicit.imaging.register import inverse, warp
from torchimplicit.imaging.register.axes import gaussian
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, Splits
from torchimplicit.train.data.measurement import Measurement, taken
from torchimplicit.train.seeds import seed_of

FOLDER = "brain"
SUFFIXES = (".nii", ".nii.gz")
FULL = 0.6  # of the largest mean of a slice, that a slice has which is taken
BLOCK, TESTED, VALIDATED = 10, 2, 4  # slices in a row that stay together; which of five such are not trained on
FINE = 2  # times as many pixels along an axis, in which slices are moved
PHASE, PHASE_WIDTH = 0.5, 16.0  # radians by RMS, and pixels


class MovingSlices(RecipeData):
    """Axial slices of a volume, each acquired twice, moved in between: undersampled k-space of one coil.

    Motion is a smooth random field, an image's phase another one, which moves with it. Slices are moved on a grid twice
    as fine, so that no reconstruction can undo it to the bit, and undersampled by lines along dimension -2, with masks
    and noise of each acquisition's own. Pairs are always the same ones. Slices stay together in blocks of ten, of five
    of which the third is tested and the fifth validated.

    Args:
        data_dir: a NIfTI file, or a folder with one, or one with a folder `brain` of such. None looks at the
            environment variable `TORCHIMPLICIT_DATA`.
        batch_size: pairs a batch, in every process.
        seed: of the shuffling.
        size: edge of the images.
        acceleration: how many times less is sampled.
        center_fraction: of the lines, at the centre, that are always sampled; None for a quarter of all that are.
        noise: standard deviation of the complex noise, the volume's largest value being 1.
        displacement: root mean square of the motion, in pixels.
        smoothness: standard deviation of the Gaussian that the motion is smoothed by, in pixels.
        pairs: of every slice that is trained on.

    Raises:
        ValueError: an option is impossible.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 2,
        seed: int = 0,
        size: int = 96,
        acceleration: float = 6.0,
        center_fraction: float | None = None,
        noise: float = 0.01,
        displacement: float = 2.0,
        smoothness: float = 12.0,
        pairs: int = 2,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.size, self.noise = data_dir, size, noise
        self.acceleration, self.displacement = acceleration, displacement
        self.smoothness, self.pairs = smoothness, pairs
        require_count(self, "pairs")
        require_count(self, "size", least=16)
        require(self, "acceleration", is_number(acceleration) and 1 <= acceleration < math.inf, "a finite number >= 1")
        self.center_fraction = 0.25 / acceleration if center_fraction is None else center_fraction
        within = is_number(self.center_fraction) and 0 <= self.center_fraction < 1 / acceleration
        require(self, "center_fraction", within, f"less than 1 / acceleration, {1 / acceleration:.3g}, and >= 0")
        for name, least in (("noise", 0.0), ("displacement", 0.0), ("smoothness", 1.0)):
            value = getattr(self, name)
            require(self, name, is_number(value) and least <= value < math.inf, f"a finite number >= {least:g}")

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: there is no volume, or it is no such file, or of too few slices; or the motion folds.
        """
        path = self._path()
        slices = _slices(path, FINE * self.size)
        parts: tuple[list[int], ...] = ([], [], [])
        for number in range(len(slices)):
            place = number // BLOCK % 5
            parts[{TESTED: 2, VALIDATED: 1}.get(place, 0)].append(number)
        if not all(parts):
            raise DataError(
                f"MovingSlices: got {len(slices)} slices in {path.name}, expected {BLOCK * VALIDATED + 1} at least "
                "that are as full as the others. Try another volume."
            )
        counts = (self.pairs, 1, 1)
        return Splits(*(self._acquired(slices, part, count) for part, count in zip(parts, counts, strict=True)))

    def _path(self) -> Path:
        place = self.folder()
        if place is not None and place.is_file():
            return place
        places = [] if place is None else [place, place / FOLDER]
        for each in places:
            found = [path for path in each.iterdir() if path.name.lower().endswith(SUFFIXES)] if each.is_dir() else []
            if found:
                return min(found)
        looked = f"no NIfTI file in {' and '.join(map(str, places))}" if places else "no folder to look in"
        raise DataError(
            f"MovingSlices: {looked}. Try --data-dir (or the variable {DATA_VARIABLE}) with a volume, .nii or .nii.gz, "
            "or a folder that has one."
        )

    def _acquired(self, slices: Tensor, numbers: Sequence[int], count: int) -> Pairs:
        """Pairs of these slices, `count` of each."""
        seeds = [(number, seed_of("moving", number, i)) for number in numbers for i in range(count)]
        fields = [self._fields(seed) for _, seed in seeds]
        target = torch.cat([_moved(slices[number], field) for (number, _), field in zip(seeds, fields, strict=True)])
        own = torch.tensor([[seed_of(seed, which) for which in range(2)] for _, seed in seeds]).flatten()
        op = Fourier(cartesian(self.size, self.acceleration, self.center_fraction, seed=own).mT)
        y = GaussianNoise(self.noise)(op.A(target), own, where=op.mask)
        ahead = torch.stack(fields)[:, :2]
        back = inverse(ahead, on_failure="ignore")
        if not back.report.converged:
            bad = int((back.report.status != Status.CONVERGED).sum())
            raise DataError(
                f"MovingSlices(displacement={self.displacement}, smoothness={self.smoothness}): the motion of {bad} of "
                f"{len(seeds)} pairs folds. Try a larger smoothness, or less displacement."
            )
        motion = torch.stack((back.value, ahead), 1).flatten(0, 1)
        return Pairs(y, op, target, motion)

    def _fields(self, seed: int) -> Tensor:
        """Motion and phase, `(3, size, size)`."""
        generator = torch.Generator().manual_seed(seed)
        motion = smooth_noise(2, self.size, self.smoothness, generator) * self.displacement / math.sqrt(2)
        return torch.cat((motion, PHASE * smooth_noise(1, self.size, PHASE_WIDTH, generator)))


class Pairs(Dataset):
    """Acquisitions of moving objects, two of each one after the other; an index is that of an object.

    Args:
        y: measurements, `(2 N, ...)`.
        op: the operator of all of them; its own tensors of samples are narrowed with the batch.
        target: the true images, `(2 N, ...)`, or None.
        motion: see `Measurement`, `(2 N, 2, H, W)`, or None.
    """

    def __init__(self, y: Tensor, op: object, target: Tensor | None = None, motion: Tensor | None = None):
        """Keeps them."""
        self.y, self.op, self.target, self.motion = y, op, target, motion

    def __len__(self) -> int:
        return len(self.y) // 2

    def __getitem__(self, index: int) -> Measurement:
        """The two acquisitions of an object."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Measurement:
        """A whole batch at once."""
        rows = (2 * torch.tensor(indices).unsqueeze(1) + torch.arange(2)).flatten()
        target, motion = (None if each is None else each[rows] for each in (self.target, self.motion))
        return Measurement(self.y[rows], taken(self.op, rows), target, motion)


def smooth_noise(channels: int, size: int, width: float, generator: torch.Generator) -> Tensor:
    """White noise smoothed by a Gaussian, of variance 1 everywhere, `(channels, size, size)`."""
    rim = math.ceil(3 * width)
    white = torch.randn(1, channels, size + 2 * rim, size + 2 * rim, generator=generator)
    smooth = gaussian(white, [width, width])[0, :, rim : rim + size, rim : rim + size]
    return smooth * (2 * math.sqrt(math.pi) * width)


def _moved(image: Tensor, field: Tensor) -> Tensor:
    """A slice with a phase, and how it looks where it has moved to, `(2, size, size)`; see `MovingSlices._fields`."""
    fine = F.interpolate(field[None], scale_factor=FINE, mode="bilinear", align_corners=False)
    still = torch.polar(image[None, None], fine[:, 2:])
    both = torch.cat((still, warp(still, FINE * fine[:, :2], interpolation="cubic")))
    return torch.complex(F.avg_pool2d(both.real, FINE), F.avg_pool2d(both.imag, FINE))[:, 0]


def _slices(path: Path, size: int) -> Tensor:
    """Axial slices that are full enough, front up, in squares, `(n, size, size)`, in [0, 1]."""
    image = read_nifti(path)
    if image.data.dim() != 3:
        raise DataError(f"MovingSlices: got an image {tuple(image.data.shape)} in {path}, expected a volume (X, Y, Z).")
    data = image.reoriented("RAS").data.float()
    top = data.amax()
    if not bool(data.isfinite().all()) or not top > 0:
        raise DataError(f"MovingSlices: got a volume of no positive values, or with NaN, in {path}.")
    slices = (data / top).clamp_min(0).permute(2, 1, 0).flip(1)
    means = slices.mean((1, 2))
    slices = slices[means >= FULL * means.amax()]
    height, width = slices.shape[1:]
    edge = max(height, width)
    rims = [(edge - n) // 2 for n in (width, height)]
    slices = F.pad(slices, (rims[0], edge - width - rims[0], rims[1], edge - height - rims[1]))
    return F.interpolate(slices.unsqueeze(1), (size, size), mode="area")[:, 0]

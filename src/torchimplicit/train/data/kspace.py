"""K-space of scans, undersampled: a real head, or a user's own files, whole or in slabs of lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.files import read_arrays, reading
from torchimplicit.imaging import GaussianNoise, cartesian, fftc, ifftc, poisson_disc, radial
from torchimplicit.train.data.acquisitions import Acquisition, Acquisitions, Slabs, acquired
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, Splits
from torchimplicit.train.data.kspace_files import Scan, read_scan, scans_of

FOLDER, HEAD = "mri", "brain_8coil_espirit.npz"
SOURCE = "https://github.com/mikgroup/sigpy-mri-tutorial"
ENOUGH = 0.5  # of k-space, for it to be undersampled anew
KINDS = ("random", "equispaced", "poisson", "radial", "acquired")
Kind = Literal["random", "equispaced", "poisson", "radial", "acquired"]


class KSpace(RecipeData):
    """Slices of scans, their k-space undersampled by masks of their own: to train on the scans themselves.

    Training sees one acquisition of every slice, that of the first mask, in slabs where whole lines were left out.
    Validation has these acquisitions whole, and the test split `masks` of every slice, of which the first is the one
    that was trained on. Every acquisition is divided by the largest magnitude of its zero-filled image, which a user
    has, too. Whatever is random of a batch follows from seed, epoch and place.

    Args:
        data_dir: a file of k-space or a folder of such, see `train.data.read_scan`; or a folder that holds
            `brain_8coil_espirit.npz`, or has it in a folder `mri`: a real head with 8 coils, whose k-space is computed
            from its reference image. None looks at the environment variable `TORCHIMPLICIT_DATA`.
        maps: file of the coil sensitivities; None takes those beside the k-space, or estimates some.
        batch_size: samples a batch, in every process.
        seed: of the shuffling and of the slabs. Masks and noise are always the same.
        kind: of the masks: "random" or "equispaced" lines, "poisson" discs or "radial" spokes of points, or "acquired",
            k-space as it was measured.
        acceleration: how many times less is sampled.
        center_fraction: of the lines, or of the points of a Poisson disc, at the centre, that are always sampled.
        axis: along which lines are left out, -2 or -1; fastMRI's are along -1.
        noise: standard deviation of the complex noise that is added, in units of the file's k-space.
        slab: how many neighbours of the other axis a training sample has; None for whole slices.
        samples: of an epoch.
        masks: of every slice in the test split.
        held_out: files, the last ones by name, that are tested alone, and not trained on; 0 tests on all.

    Raises:
        ValueError: an option is impossible.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        maps: str | None = None,
        batch_size: int = 1,
        seed: int = 0,
        kind: Kind = "random",
        acceleration: float = 4.0,
        center_fraction: float = 0.08,
        axis: int = -2,
        noise: float = 0.002,
        slab: int | None = 24,
        samples: int = 200,
        masks: int = 5,
        held_out: int = 0,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.maps, self.kind, self.axis, self.slab = data_dir, maps, kind, axis, slab
        self.acceleration, self.center_fraction, self.noise = acceleration, center_fraction, noise
        self.samples, self.masks, self.held_out = samples, masks, held_out
        require(self, "kind", kind in KINDS, f"one of {', '.join(map(repr, KINDS))}")
        require(self, "axis", axis in (-2, -1), "-2 or -1")
        fine = is_number(acceleration) and 1 <= acceleration < float("inf")
        require(self, "acceleration", fine, "a finite number >= 1")
        within = is_number(center_fraction) and 0 <= center_fraction < 1 / acceleration
        require(self, "center_fraction", within, f"less than 1 / acceleration, {1 / acceleration:.3g}, and >= 0")
        require(self, "noise", is_number(noise) and 0 <= noise < float("inf"), "a finite number >= 0")
        require_count(self, "samples", "masks")
        require_count(self, "held_out", least=0)
        if slab is not None:
            require_count(self, "slab", least=2)

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: there is no k-space, or some is broken, or too little of it was sampled.
        """
        scans = self._scans()
        if self.held_out >= len(scans):
            raise DataError(f"KSpace(held_out={self.held_out}): got {len(scans)} files, expected more than these")
        last = len(scans) - self.held_out
        trained = self._acquisitions(scans[:last], 1)
        tested = self._acquisitions(
            scans[last:] if self.held_out else scans, 1 if self.kind == "acquired" else self.masks
        )
        return Splits(Slabs(trained, self.slab, self.samples), Acquisitions(trained), Acquisitions(tested))

    def _scans(self) -> list[tuple[Scan, Tensor | None]]:
        """Scans, and the reference image of the head."""
        place = self.folder()
        if place is not None and place.is_file():
            return [(read_scan(place, self.maps), None)]
        places = [] if place is None else [place, place / FOLDER]
        for each in places:
            if (each / HEAD).is_file() and self.kind != "acquired":
                return [_head(each / HEAD)]
        for each in places:
            paths = scans_of(each) if each.is_dir() else []
            if paths:
                return [(read_scan(path, self.maps), None) for path in paths]
        looked = f"no k-space in {' and '.join(map(str, places))}" if places else "no folder to look in"
        raise DataError(
            f"KSpace: {looked}. Try --data-dir (or the variable {DATA_VARIABLE}) with a file or a folder of k-space "
            f"(.npy, .npz, .cfl, .h5), or with the head of {SOURCE} and its maps in {HEAD}."
        )

    def _acquisitions(self, scans: Sequence[tuple[Scan, Tensor | None]], masks: int) -> list[Acquisition]:
        found = []
        for scan, reference in scans:
            for index in range(len(scan.kspace)):
                maps = scan.maps_of(index)
                for number in range(masks):
                    seed = number + masks * index
                    found.append(self._acquisition(scan, index, maps, reference, seed))
        return found

    def _acquisition(self, scan: Scan, index: int, maps: Tensor, reference: Tensor | None, seed: int) -> Acquisition:
        kspace, have = scan.kspace[index], scan.mask[index]
        name = f"{scan.name}, slice {index}, mask {seed}"
        if self.kind == "acquired":
            return acquired(name, kspace, maps, have)
        share = float(have.float().mean())
        if share < ENOUGH:
            raise DataError(
                f"KSpace(kind={self.kind!r}): got {scan.name} with {share:.1%} of k-space sampled in slice {index}, "
                f"expected {ENOUGH:.0%} at least, to undersample it anew. Try kind: acquired, which takes it as it is"
            )
        mask = self._mask(have.shape, seed)
        target = (maps.conj() * ifftc(kspace)).sum(0) if reference is None else reference
        whole = mask.expand(have.shape) & have
        mask = mask if bool(have.all()) else whole
        y = GaussianNoise(self.noise)((mask * kspace)[None], seed, where=mask)[0]
        return acquired(name, y, maps, mask, target)

    def _mask(self, shape: torch.Size, seed: int) -> Tensor:
        height, width = shape
        if self.kind == "poisson":
            return poisson_disc((height, width), self.acceleration, self.center_fraction, seed=seed)
        if self.kind == "radial":
            return radial((height, width), self.acceleration, seed=seed)
        assert self.kind in ("random", "equispaced")
        lines = cartesian(shape[self.axis], self.acceleration, self.center_fraction, self.kind, seed)
        return lines.mT if self.axis == -2 else lines


def _head(path: Path) -> tuple[Scan, Tensor]:
    """The real head: k-space by its maps from its reference image, all of it."""
    with reading("KSpace", path, f"Try to make it again from {SOURCE}, by ESPIRiT and a wavelet reconstruction."):
        maps, image = (torch.from_numpy(each) for each in read_arrays(path, "maps", "recon_l1wavelet", kinds="c"))
        if (
            maps.dim() != 3
            or image.shape != maps.shape[1:]
            or not bool(maps.isfinite().all() and image.isfinite().all())
        ):
            raise ValueError(f"maps {tuple(maps.shape)} and an image {tuple(image.shape)}, expected (C, H, W), (H, W)")
    kspace = fftc(maps * image)[None]
    return Scan(path.name, kspace, torch.ones(1, *image.shape, dtype=torch.bool), maps[None]), image

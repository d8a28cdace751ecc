"""A user's own acquisitions of objects that moved: two files of k-space of each, slice by slice."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.imaging import Fourier, Sense
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, Splits
from torchimplicit.train.data.kspace_files import Scan, read_scan, scans_of
from torchimplicit.train.data.moving import Pairs


class RepeatedScans(RecipeData):
    """K-space of objects that were scanned twice and moved in between; nobody has the truth.

    The files of a folder are taken in twos, by their names: `head1-a.npy, head1-b.npy, head2-a.npy, ...`. Both have
    the same slices, of one size in all files. What was sampled is what is not zero, or what the file says. Each pair
    of slices is divided by the largest magnitude of the first one's zero-filled image.

    Args:
        data_dir: the folder, of files as `train.data.read_scan` takes. None looks at the environment variable
            `TORCHIMPLICIT_DATA`.
        batch_size: pairs of slices a batch, in every process.
        seed: of the shuffling.
        held_out: objects, the last ones by name, that are validated and tested alone; 0 takes all for everything.

    Raises:
        ValueError: an option is impossible.
    """

    def __init__(self, data_dir: str | None = None, batch_size: int = 2, seed: int = 0, held_out: int = 0):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.held_out = data_dir, held_out
        require_count(self, "held_out", least=0)

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: there are no files, an odd number, or files that do not go together.
        """
        paths = self._paths()
        scans = [read_scan(path) for path in paths]
        for scan, path in zip(scans, paths, strict=True):
            if scan.kspace.shape[1:] != scans[0].kspace.shape[1:]:
                got, expected = tuple(scan.kspace.shape[1:]), tuple(scans[0].kspace.shape[1:])
                raise DataError(
                    f"RepeatedScans: got coils and slices {got} in {path} and {expected} in {paths[0]}, expected one "
                    "size, as batches mix them"
                )
        objects = list(zip(scans[::2], scans[1::2], strict=True))
        for one, other in objects:
            if len(one.kspace) != len(other.kspace):
                raise DataError(
                    f"RepeatedScans: got {len(one.kspace)} slices in {one.name} and {len(other.kspace)} in "
                    f"{other.name}, expected as many of both acquisitions"
                )
        last = len(objects) - self.held_out
        if last < 1:
            raise DataError(f"RepeatedScans(held_out={self.held_out}): got {len(objects)} objects, expected more")
        held = _together(objects[last:] if self.held_out else objects)
        return Splits(_together(objects[:last]), held, held)

    def _paths(self) -> list[Path]:
        folder = self.folder()
        if folder is None or not folder.is_dir():
            where = "no folder to look in" if folder is None else f"{folder}, which is no folder"
            raise DataError(
                f"RepeatedScans: {where}. Try --data-dir (or the variable {DATA_VARIABLE}) with a folder of k-space, "
                "two files (.npy, .npz, .h5) of every object."
            )
        paths = scans_of(folder)
        if not paths or len(paths) % 2:
            names = ", ".join(path.name for path in paths[:6]) or "none"
            raise DataError(
                f"RepeatedScans: got {len(paths)} files of k-space in {folder} ({names}), expected two each"
            )
        return paths


def _together(objects: list[tuple[Scan, Scan]]) -> Pairs:
    """All slices of these objects: first one acquisition of it, then the other."""
    y: list[Tensor] = []
    masks: list[Tensor] = []
    maps: list[Tensor] = []
    for pair in objects:
        for index in range(len(pair[0].kspace)):
            scale = 1.0
            for number, scan in enumerate(pair):
                kspace, mask = scan.kspace[index], scan.mask[index]
                own = torch.ones_like(kspace) if len(kspace) == 1 else scan.maps_of(index)
                if not number:
                    scale = float(Sense(own, mask).A_adjoint(kspace[None]).abs().max())
                y.append(kspace / scale)
                masks.append(mask)
                maps.append(own)
    if len(y[0]) == 1:
        return Pairs(torch.cat(y), Fourier(torch.stack(masks)))
    return Pairs(torch.stack(y), Sense(torch.stack(maps), torch.stack(masks)))

"""The HDF5 files of fastMRI: k-space of a volume, with its reconstruction, or with the mask of a test."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.imaging.files import hdf5

HINT = "Expected a file of fastMRI: HDF5 with `kspace` (slices, [coils,] rows, columns), complex."
TARGETS = ("reconstruction_rss", "reconstruction_esc")


class FastMRI(NamedTuple):
    """A volume of fastMRI.

    Attributes:
        kspace: `(S, C, H, W)`, complex, centred; one coil where the file is of a single one.
        target: the reconstruction that is published with it, `(S, h, w)`: its middle, cropped; None in a test.
        mask: which columns of k-space were taken, `(W,)` bool; None where all were.
        header: the XML of ISMRMRD, or None.
        attributes: numbers and words beside them; `max` is the range of the volume, for `ssim`.
    """

    kspace: Tensor
    target: Tensor | None
    mask: Tensor | None
    header: str | None
    attributes: dict[str, float | str]


def read_fastmri(path: str | Path, slices: slice = slice(None)) -> FastMRI:
    """Some slices of a volume. Nothing else of the file is read: they are often of a gigabyte.

    Source: J. Zbontar et al., fastMRI, arXiv 1811.08839, section 4.

    Args:
        path: of the file.
        slices: which of the volume.

    Raises:
        DataError: the file is absent, cut short, something else, or its parts do not belong together.
        ImportError: h5py is not installed.
    """
    import numpy as np

    path = Path(path)
    with hdf5.opened("read_fastmri", path, HINT) as file:
        kspace = hdf5.array(file, "kspace", "c", (3, 4), slices)
        kspace = kspace[:, None] if kspace.ndim == 3 else kspace
        if not np.isfinite(kspace).all():
            raise ValueError("'kspace' has values that are not finite")
        target = next((hdf5.array(file, name, "f", (3,), slices) for name in TARGETS if name in file), None)
        if target is not None and (
            len(target) != len(kspace) or any(a > b for a, b in zip(target.shape[1:], kspace.shape[2:], strict=True))
        ):
            raise ValueError(f"a reconstruction {target.shape} beside k-space {kspace.shape}")
        mask = hdf5.array(file, "mask", "biuf", (1,)).astype(bool) if "mask" in file else None
        if mask is not None and mask.shape != kspace.shape[-1:]:
            raise ValueError(f"a mask of {mask.shape} beside {kspace.shape[-1]} columns of k-space")
        if mask is not None and not mask.any():
            raise ValueError("a mask that takes no column")
        return FastMRI(
            torch.from_numpy(kspace),
            None if target is None else torch.from_numpy(target),
            None if mask is None else torch.from_numpy(mask),
            hdf5.text(file, "ismrmrd_header"),
            {key: _plain(value) for key, value in file.attrs.items()},
        )


def _plain(value: object) -> float | str:
    import numpy as np

    if isinstance(value, bytes):
        return value.decode()
    return float(value) if isinstance(value, np.number | int | float) else str(value)

"""K-space of somebody's scanner, with coil sensitivities: NumPy's files, fastMRI's, ISMRMRD's and BART's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.files import read_array, read_arrays, reading
from torchimplicit.imaging import espirit, read_cfl, read_fastmri, read_ismrmrd
from torchimplicit.imaging.files import hdf5
from torchimplicit.train.data.base import DataError

HINT = (
    "Expected k-space, complex, (C, H, W) or (slices, C, H, W): .npy, .npz with an array 'kspace', .cfl of BART, or "
    "HDF5 of fastMRI or of ISMRMRD."
)
MAPS_HINT = (
    "Expected coil sensitivities, complex, (C, H, W) or (slices, C, H, W): .npy, .cfl of BART, or an array 'maps' in "
    ".npz or HDF5."
)
HDF5 = (".h5", ".hdf5", ".mrd")
CFL = ".cfl"
SUFFIXES = (".npy", ".npz", CFL, *HDF5)
BART = {13: "slice", 3: "coil", 0: "row", 1: "column"}  # which of its 16 dimensions are what, in this package's order


@dataclass(frozen=True, eq=False)
class Scan:
    """K-space of the slices of a volume, and by what it was received.

    Attributes:
        name: of the file.
        kspace: `(S, C, H, W)`, complex64, centred; zero where nothing was sampled.
        mask: where something was, `(S, H, W)` bool.
        maps: coil sensitivities `(S, C, H, W)`, or `(1, C, H, W)` for all slices; None where they have to be estimated.
    """

    name: str
    kspace: Tensor
    mask: Tensor
    maps: Tensor | None = None

    def maps_of(self, index: int, **options: float) -> Tensor:
        """Sensitivities of a slice, `(C, H, W)`: those that are given, or else estimated; see `imaging.espirit`.

        Raises:
            DataError: the middle of k-space does not suffice for an estimate.
        """
        if self.maps is not None:
            return self.maps[min(index, len(self.maps) - 1)]
        try:
            return espirit(self.kspace[index], self.mask[index], **options)  # type: ignore[arg-type]
        except ValueError as error:
            raise DataError(
                f"{self.name}, slice {index}: no maps are given, and none can be estimated: {error}"
            ) from error


def read_scan(path: str | Path, maps: str | Path | None = None, slices: slice = slice(None)) -> Scan:
    """K-space of a file, whichever kind it is of, with the sensitivities of another file where there is one.

    Args:
        path: `.npy` with one array, `.npz` with `kspace` and perhaps `mask` and `maps`, HDF5 of fastMRI or ISMRMRD, or
            `.cfl` of BART, with rows, columns, coils and slices in its dimensions 0, 1, 3 and 13.
        maps: `.npy`, `.cfl`, or `.npz` or HDF5 with `maps`; None takes those beside the k-space, or none.
        slices: which of the volume.

    Raises:
        DataError: a file is absent, cut short or something else; has values that are not finite, or nothing but zeros;
            or maps and k-space are of different sizes.
        ImportError: HDF5 is to be read, and h5py is not installed.
    """
    path = Path(path)
    with reading("read_scan", path, HINT):
        if not path.is_file():
            raise ValueError("no such file")
        kspace, mask, own = _read(path, slices)
        kspace = _slices("k-space", kspace)
        mask = (kspace != 0).any(1) if mask is None else mask.expand(len(kspace), *kspace.shape[-2:])
        empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"nothing was sampled of slice {empty[0]}: its k-space or its mask has zeros alone")
    if maps is not None:
        own = _read_maps(Path(maps), slices)
    if own is None:
        return Scan(path.name, kspace, mask)
    where = Path(maps) if maps is not None else path
    with reading("read_scan", where, MAPS_HINT):
        own = _slices("maps", own)
        if own.shape[1:] != kspace.shape[1:] or len(own) not in (1, len(kspace)):
            raise ValueError(
                f"maps {tuple(own.shape)} beside k-space {tuple(kspace.shape)} of {path.name}, expected as many coils, "
                "rows and columns, and one slice or as many"
            )
    return Scan(path.name, kspace, mask, own)


def scans_of(folder: Path) -> list[Path]:
    """The files of a folder that may hold k-space, by their names."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found, key=lambda path: path.name)


def _read(path: Path, slices: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """K-space, mask `(H, W)` or `(S, H, W)`, and maps, of a file of any kind."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _cut(torch.from_numpy(read_array(path, "c")), slices), None, None
    if suffix == ".npz":
        return _read_archive(path, slices)
    if suffix == CFL:
        return _cut(_of_bart(path), slices), None, None
    if suffix not in HDF5:
        raise ValueError(f"a name that ends in {suffix or 'nothing'}, expected {', '.join(SUFFIXES)}")
    with hdf5.opened("read_scan", path, HINT) as file:
        ours = "kspace" in file
        maps = torch.from_numpy(hdf5.array(file, "maps", "c", (3, 4))) if "maps" in file else None
        names = ", ".join(map(repr, list(file)[:8])) or "nothing"
        raw = "dataset" in file
    if not ours and not raw:
        raise ValueError(f"neither 'kspace' nor 'dataset', but {names}")
    if ours:
        volume = read_fastmri(path, slices)
        kspace, columns = volume.kspace, volume.mask
        seen = None if columns is None else (kspace != 0).any(1) & columns
        return kspace, seen, _cut(maps, slices) if maps is not None and maps.dim() == 4 else maps
    kspace, mask = read_ismrmrd(path)
    return kspace[slices], mask[slices], None


def _read_archive(path: Path, slices: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
    names = _names(path)
    (kspace,) = read_arrays(path, "kspace", kinds="c")
    cut = _cut(torch.from_numpy(kspace), slices)
    mask = maps = None
    if "mask" in names:
        mask = torch.from_numpy(read_arrays(path, "mask")[0]) != 0
        fits = mask.dim() in (1, 2, 3) and mask.shape[-1] in (1, cut.shape[-1])
        if not fits or (mask.dim() > 1 and mask.shape[-2] not in (1, cut.shape[-2])):
            raise ValueError(
                f"a mask {tuple(mask.shape)} beside k-space {tuple(kspace.shape)}, expected one that broadcasts"
            )
        mask = _cut(mask, slices) if mask.dim() == 3 else mask
    if "maps" in names:
        maps = torch.from_numpy(read_arrays(path, "maps", kinds="c")[0])
        maps = _cut(maps, slices) if maps.dim() == 4 and len(maps) > 1 else maps
    return cut, mask, maps


def _read_maps(path: Path, slices: slice) -> Tensor:
    with reading("read_scan", path, MAPS_HINT):
        if not path.is_file():
            raise ValueError("no such file")
        suffix = path.suffix.lower()
        if suffix == ".npy":
            maps = torch.from_numpy(read_array(path, "c"))
        elif suffix == ".npz":
            maps = torch.from_numpy(read_arrays(path, "maps", kinds="c")[0])
        elif suffix == CFL:
            maps = _of_bart(path)
        else:
            with hdf5.opened("read_scan", path, MAPS_HINT) as file:
                maps = torch.from_numpy(hdf5.array(file, "maps", "c", (3, 4)))
        return _cut(maps, slices) if maps.dim() == 4 and len(maps) > 1 else maps


def _of_bart(path: Path) -> Tensor:
    """`(S, C, H, W)` of BART's dimensions; whatever else has a length is none of this package's."""
    array = read_cfl(path)
    array = array.reshape(*array.shape, *(1,) * (max(BART) + 1 - array.dim()))
    others = {number: size for number, size in enumerate(array.shape) if size > 1 and number not in BART}
    if others:
        got = ", ".join(f"{size} along dimension {number}" for number, size in others.items())
        known = ", ".join(f"{name}s in {number}" for number, name in BART.items())
        raise ValueError(
            f"{got}, expected {known} and nothing else; try bart slice, or for a second phase encoding (2) bart fft "
            "-iu 4 and bart transpose 2 13"
        )
    return array.permute(*BART, *(number for number in range(array.dim()) if number not in BART)).flatten(3)


def _names(path: Path) -> list[str]:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _cut(array: Tensor, slices: slice) -> Tensor:
    """Some slices, where the array has several."""
    if array.dim() < 3 or (array.dim() == 3 and array.dtype != torch.bool):
        return array
    cut = array[slices]
    if not len(cut):
        raise ValueError(f"{slices} leaves none of the {len(array)} slices")
    return cut


def _slices(name: str, array: Tensor) -> Tensor:
    """`(S, C, H, W)` in single precision, if it is finite and no slice is zero alone."""
    array = array[None] if array.dim() == 3 else array
    if array.dim() != 4 or not array.numel():
        raise ValueError(f"{name} {tuple(array.shape)}, expected (C, H, W) or (slices, C, H, W)")
    bad = int((~array.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} with {bad} values that are NaN or infinite")
    empty = (~array.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{name} of zeros alone in slice {empty[0]}")
    return array.to(torch.complex64)

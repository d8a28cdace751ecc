"""K-space in plain arrays, NumPy's or BART's, whose axes somebody has to name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.files import read_array, read_arrays, reading
from torchimplicit.imaging.files.cfl import read_cfl

HINT = 'Expected an array of .npy, .npz or .cfl with the axes that were named; try axes="coil row column".'
ORDER = ("slice", "coil", "row", "column")


def read_kspace(path: str | Path, axes: str, *, name: str | None = None) -> Tensor:
    """An array of k-space, or of coil sensitivities, as `(S, C, H, W)`, complex, in single precision or double.

    Such files say nothing of which axis is which, nor where the zero frequency is: `fftc` and `Sense` have it at pixel
    `N // 2`; for a file with it at the first one try `torch.fft.fftshift(kspace, (-2, -1))`.

    Args:
        path: of a file that ends in .npy, .npz or .cfl.
        axes: names of its axes, in their order: "slice", "coil", "row", "column"; and "part", of real and imaginary
            part. Those not named are of length 1 in the result. Axes of length 1 that follow the named ones may be
            left out, as BART has them.
        name: of the array in an .npz; None where it has one alone.

    Raises:
        DataError: the file is absent, cut short, something else, or has other axes, or values that are not finite.
        ValueError: names that are none.

    Examples:
        >>> import numpy as np, tempfile, os
        >>> from torchimplicit.imaging import read_kspace
        >>> path = os.path.join(tempfile.mkdtemp(), "scan.npy")
        >>> np.save(path, np.ones((8, 6, 4), np.complex64))
        >>> read_kspace(path, "row column coil").shape
        torch.Size([1, 4, 8, 6])
    """
    path, names = Path(path), axes.split() if isinstance(axes, str) else []
    if not {"row", "column"} <= {*names} <= {*ORDER, "part"} or len({*names}) < len(names):
        raise ValueError(
            f"read_kspace(axes={axes!r}): expected names of slice, coil, row, column and part, row and column among "
            'them, each once; try "coil row column"'
        )
    with reading("read_kspace", path, HINT):
        array = _array(path, name)
        rest = array.shape[len(names) :]
        if array.dim() < len(names) or any(size != 1 for size in rest):
            raise ValueError(f"an array {tuple(array.shape)}, expected {len(names)} axes, {', '.join(names)}")
        array = array.reshape(array.shape[: len(names)])
        return _ordered(array, names).contiguous()


def _ordered(array: Tensor, names: list[str]) -> Tensor:
    """Complex, with all axes in their order."""
    if array.is_complex() == ("part" in names):
        expected = "real with an axis of two parts" if "part" in names else 'complex; or name an axis "part"'
        raise ValueError(f"values of {array.dtype}, expected them to be {expected}")
    if not array.numel() or not bool(array.isfinite().all()):
        raise ValueError(f"an array {tuple(array.shape)} with values that are not finite, or with none")
    if "part" in names:
        array = array.movedim(names.index("part"), -1)
        if array.shape[-1] != 2:
            raise ValueError(f"an axis 'part' of {array.shape[-1]}, expected 2, real and imaginary part")
        array = torch.view_as_complex(array.to(torch.promote_types(array.dtype, torch.float32)).contiguous())
        names = [each for each in names if each != "part"]
    array = array.permute([names.index(each) for each in ORDER if each in names])
    for place, each in enumerate(ORDER):
        array = array if each in names else array.unsqueeze(place)
    return array


def _array(path: Path, name: str | None) -> Tensor:
    """What the file holds."""
    import numpy as np

    if path.suffix == ".cfl":
        return read_cfl(path)
    if not path.is_file():
        raise ValueError("no such file")
    if path.suffix == ".npy":
        values = read_array(path, "cf")
    elif path.suffix == ".npz":
        values = read_arrays(path, _only(path) if name is None else name, kinds="cf")[0]
    else:
        raise ValueError(f"an ending {path.suffix!r}")
    kind = np.dtype(np.complex128 if values.dtype.kind == "c" else np.float64)
    single = values.dtype.itemsize <= kind.itemsize // 2
    return torch.from_numpy(values.astype(np.dtype(f"{kind.kind}{kind.itemsize // 2}") if single else kind))


def _only(path: Path) -> str:
    """The name of the one array of an archive."""
    with zipfile.ZipFile(path) as archive:
        names = [each.removesuffix(".npy") for each in archive.namelist()]
    if len(names) != 1:
        found = ", ".join(map(repr, names[:5])) or "nothing"
        raise ValueError(f"{len(names)} arrays, {found}; try read_kspace(path, axes, name=...) with one of them")
    return names[0]

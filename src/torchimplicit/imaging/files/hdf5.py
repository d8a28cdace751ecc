"""HDF5, by h5py: arrays that are there, of the kind expected, and no larger than a file of data may be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchimplicit.files import reading, require_size
from torchimplicit.imaging.files.extra import needed

if TYPE_CHECKING:
    import numpy as np

SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened(owner: str, path: Path, hint: str) -> Iterator[Any]:
    """An HDF5 file, open for reading; whatever goes wrong with it is one sentence.

    Args:
        owner: the function that reads.
        path: of the file.
        hint: a sentence on what was expected.

    Raises:
        DataError: the file is absent, cut short, or something else.
        ImportError: h5py is not installed.
    """
    library = needed("h5py", "HDF5 files")
    with reading(owner, path, hint):
        if not path.is_file():
            raise ValueError("no such file")
        with path.open("rb") as file:
            start = file.read(len(SIGNATURE))
        if start != SIGNATURE:
            raise ValueError(f"starts with bytes {start.hex()}, not with those of an HDF5 file ({SIGNATURE.hex()})")
        with library.File(path, "r") as file:
            yield file


def array(file: Any, name: str, kinds: str, ndims: tuple[int, ...], rows: slice = slice(None)) -> np.ndarray:
    """Some rows of an array.

    Args:
        file: as `opened` gives it.
        name: of the array.
        kinds: NumPy's letters of what it may hold.
        ndims: how many dimensions it may have.
        rows: which of the first dimension are read.

    Raises:
        ValueError: there is no such array; or it is of another kind, empty or too large.
    """
    found = dataset(file, name)
    if found.dtype.kind not in kinds or found.ndim not in ndims or not found.size:
        raise ValueError(
            f"{name!r} is {found.shape} of {found.dtype}, expected {' or '.join(map(str, ndims))} dimensions of numbers"
        )
    count = len(range(*rows.indices(found.shape[0])))
    if not count:
        raise ValueError(f"{rows} leaves none of the {found.shape[0]} slices")
    require_size(count * math.prod(found.shape[1:]) * found.dtype.itemsize)
    return found[rows]


def dataset(file: Any, name: str) -> Any:
    """A data set of a file, not read yet.

    Raises:
        ValueError: there is none of that name; names what there is.
    """
    found = file.get(name)
    if found is None or not hasattr(found, "dtype"):
        raise ValueError(f"no array {name!r}, but {', '.join(map(repr, list(file)[:8])) or 'nothing'}")
    return found


def text(file: Any, name: str) -> str | None:
    """A text in a data set, or None where there is none."""
    import numpy as np

    if name not in file:
        return None
    found = np.asarray(dataset(file, name)[()]).reshape(-1)
    if len(found) != 1 or not isinstance(found[0], bytes | str):
        raise ValueError(f"{name!r} is {len(found)} values, expected one text")
    return found[0].decode() if isinstance(found[0], bytes) else found[0]

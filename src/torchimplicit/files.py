"""Files that somebody else has made: read with bounds, and refused in one sentence that names them."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import IO, TYPE_CHECKING

from torchimplicit.core.status import ImplicitError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DEEP = ("I", "F")  # modes of PIL
LARGEST = 2**31  # bytes that one file, or what it unpacks to, may have: twenty times the data of any recipe


class DataError(ImplicitError, RuntimeError):
    """Somebody's data is absent, unreadable or not what it should be."""


@contextmanager
def reading(data: str, path: Path, hint: str) -> Iterator[None]:
    """Turns whatever goes wrong with a file into one sentence: the path, what was found, what to try.

    Args:
        data: whose file it is.
        path: of the file or folder.
        hint: a sentence on what was expected or what to try.

    Raises:
        DataError: in the place of any other error.
    """
    try:
        yield
    except ImplicitError:
        raise
    except Exception as error:  # NumPy, PIL, zip, gzip, pickle and torch each have their own, of no common base
        raise DataError(f"{data}: cannot read {path}: {reason(error)}. {hint}") from error


def require_size(size: int) -> None:
    """Raises a `ValueError` if so many bytes are more than a file of data may have."""
    if size > LARGEST:
        raise ValueError(f"too many bytes, expected at most {LARGEST}")


def read_bytes(path: Path) -> bytes:
    """The content of a file that is not too large."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    require_size(len(content))
    return content


def read_arrays(path: Path, *names: str, kinds: str = "biuf") -> list[np.ndarray]:
    """Arrays of a NumPy archive by their names, each no larger than its own header says; no pickles.

    Args:
        path: of the archive.
        *names: of the arrays.
        kinds: NumPy's letters of what they may hold.

    Raises:
        Exception: of many kinds, for `reading` to translate.
    """
    with zipfile.ZipFile(path) as archive:
        return [_read_member(archive, name, kinds) for name in names]


def read_array(path: Path, kinds: str = "biuf") -> np.ndarray:
    """The array of a NumPy file, no larger than its own header says; no pickles. See `read_arrays`."""
    with path.open("rb") as stream:
        return _read_stream(stream, path.stat().st_size, path.name, kinds)


def _read_member(archive: zipfile.ZipFile, name: str, kinds: str) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"no array {name!r}, but {', '.join(archive.namelist()[:5]) or 'nothing'}")
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        return _read_stream(stream, member.file_size, name, kinds)


def _read_stream(stream: IO[bytes], size: int, name: str, kinds: str) -> np.ndarray:
    import numpy as np

    require_size(size)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array {name!r} is of version {version}, expected (1, 0) or (2, 0)")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = header(stream)
    size, promised = size - stream.tell(), math.prod(shape) * kind.itemsize
    if kind.kind not in kinds:
        raise ValueError(f"array {name!r} is of {kind}, expected numbers")
    if size != promised:
        raise ValueError(f"array {name!r} has {size} bytes, but its header says {shape} of {kind}")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def require_unpacked(path: Path) -> None:
    """Raises a `ValueError` if an archive unpacks to more than its own size, which those that torch writes do not."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(
                f"{path.stat().st_size} bytes that unpack to {size}, expected an archive as torch writes it"
            )


@contextmanager
def opened_picture(path_or_file: object) -> Iterator[Image.Image]:
    """A picture that is not decoded yet.

    Args:
        path_or_file: as `PIL.Image.open` takes it. What it warns of or refuses, pictures of very many pixels, is
            refused, and so are pictures of more than 8 bits a channel: PIL would cut their bright pixels off.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path_or_file) as picture:  # type: ignore[arg-type]
            if picture.mode in DEEP or picture.mode.startswith("I;16"):
                raise ValueError(f"more than 8 bits a channel (mode {picture.mode})")
            yield picture


def read_picture(path_or_file: object, mode: str, size: tuple[int, int] | None = None) -> np.ndarray | None:
    """The pixels of a picture, `(height, width)` or `(height, width, channels)`.

    Args:
        path_or_file: see `opened_picture`.
        mode: "L" or "RGB".
        size: (width, height) that it must have; nothing else is decoded.

    Returns:
        The bytes, or None for another size.
    """
    import numpy as np

    with opened_picture(path_or_file) as picture:
        return np.asarray(picture.convert(mode)) if size is None or picture.size == size else None


def reason(error: Exception) -> str:
    """What an error says was found, in a line that is not too long."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
    said = shorten(said, 200, placeholder=" ...").rstrip(".")
    if not said or isinstance(error, LookupError):  # a key says little by itself
        return f"{type(error).__name__} {said}".rstrip()
    return said

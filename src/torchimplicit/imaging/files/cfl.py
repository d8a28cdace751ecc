"""The files of BART: numbers in `name.cfl`, their dimensions in `name.hdr`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.files import reading, require_size

HINT = "Expected BART's pair of files, name.cfl of complex64 and name.hdr with its dimensions."
DIMENSIONS = 16
LONGEST = 2**16  # characters of a header: dimensions, and the commands that made the file


def read_cfl(path: str | Path) -> Tensor:
    """The array of a pair of BART's files, complex64, with BART's dimensions but for trailing ones.

    BART counts readout, two phase encodings, coils, maps, echoes, ...: k-space of one slice is `(X, Y, 1, C)`.
    `read_kspace(path, "row column slice coil")` puts it into this package's order.

    Args:
        path: of either file, or of both without their ending.

    Raises:
        DataError: a file is absent, cut short, or something else.
    """
    import numpy as np

    numbers, header = _pair(path)
    with reading("read_cfl", numbers, HINT):
        for file in (header, numbers):
            if not file.is_file():
                raise ValueError(f"no such file as {file}")
        with header.open(encoding="utf-8") as stream:
            shape = _dimensions(stream.read(LONGEST))
        size, promised = numbers.stat().st_size, 8 * math.prod(shape)
        if size != promised:
            raise ValueError(f"it has {size} bytes, but {header.name} says {shape}, which is {promised}")
        require_size(size)
        values = np.fromfile(numbers, "<c8").reshape(shape, order="F")
        return torch.from_numpy(np.ascontiguousarray(values, np.complex64))


def write_cfl(path: str | Path, array: Tensor) -> None:
    """Writes an array as a pair of BART's files, in complex64.

    Args:
        path: of either file, or of both without their ending.
        array: of BART's dimensions, at most 16, none of them empty.

    Raises:
        ValueError: it has more dimensions, or no entries.
    """
    import numpy as np

    if array.dim() > DIMENSIONS or not array.numel():
        raise ValueError(f"write_cfl: got {tuple(array.shape)}, expected at most {DIMENSIONS} dimensions, none empty")
    numbers, header = _pair(path)
    values = array.detach().cpu().resolve_conj().resolve_neg().to(torch.complex64).numpy()
    np.asarray(values, "<c8").ravel(order="F").tofile(numbers)
    shape = (*array.shape, *(1,) * (DIMENSIONS - array.dim()))
    header.write_text(f"# Dimensions\n{' '.join(map(str, shape))}\n", encoding="utf-8")


def _pair(path: str | Path) -> tuple[Path, Path]:
    """Both files; a name may have dots of its own."""
    path = Path(path)
    stem = path.name.removesuffix(".cfl").removesuffix(".hdr")
    return path.with_name(f"{stem}.cfl"), path.with_name(f"{stem}.hdr")


def _dimensions(header: str) -> tuple[int, ...]:
    """Of a header's text, without trailing ones."""
    lines = [line.strip() for line in header.splitlines()]
    if "# Dimensions" not in lines[:-1]:
        raise ValueError("a header without a line '# Dimensions' and one of numbers after it")
    words = lines[lines.index("# Dimensions") + 1].split()
    if not 0 < len(words) <= DIMENSIONS or not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"dimensions {' '.join(words)!r}, expected 1 to {DIMENSIONS} numbers > 0")
    shape = list(map(int, words))
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)

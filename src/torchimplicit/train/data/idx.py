"""The idx format, in which MNIST is published: a header of sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.files import require_size

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """The array in an idx file of unsigned bytes, gzipped or not, uint8.

    The header is read first, and of the rest no more than it promises, whatever the file would unpack to.

    Raises:
        OSError: the file cannot be read.
        EOFError: its gzip stream is cut short.
        zlib.error: its gzip stream is broken.
        ValueError: its content is not a whole idx file of unsigned bytes.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if zipped else file as stream:
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] != UNSIGNED_BYTE:
                raise ValueError(f"starts with bytes {start.hex()}, not with those of an idx file (000008..)")
            sizes = stream.read(4 * start[3])
            if len(sizes) < 4 * start[3]:
                raise ValueError(f"{4 + len(sizes)} bytes, too few for its own header")
            shape = struct.unpack(f">{start[3]}I", sizes)
            count = math.prod(shape)
            require_size(count)
            data = stream.read(count + 1)
    if len(data) != count:
        got = "more bytes" if len(data) > count else f"{len(data)} bytes"
        raise ValueError(f"{got} of data, but its header says {shape}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape) if count else torch.empty(shape).byte()

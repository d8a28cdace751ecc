"""The idx format, in which MNIST is published: a header of sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """The array in an idx file of unsigned bytes, gzipped or not, uint8.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is not a whole idx file of unsigned bytes.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"broken gzip stream ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise ValueError(f"starts with bytes {content[:4].hex()}, not with those of an idx file (000008..)")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{len(content)} bytes, too few for its own header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{len(content) - start} bytes of data, but its header says {shape}")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)

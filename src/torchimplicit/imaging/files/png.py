"""PNG, by PIL: grey and colour, with the range said."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.files import reading
from torchimplicit.imaging.files.extra import needed

HINT = "Expected a PNG of grey or RGB, of 8 bits, or of 16 in grey."
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {0: "L", 2: "RGB", 3: "RGB"}  # of the header; a palette is of colours. The others have an alpha channel.


def read_png(path: str | Path, *, linear: bool = False) -> Tensor:
    """A picture `(C, H, W)`, float32 in [0, 1]: what is stored over 255, or over 65535 where it has 16 bits.

    What is stored is the light under the curve of sRGB, as screens want it; sums of light, such as a blur, are sums
    of linear values.

    Args:
        path: of the file.
        linear: undoes the curve of sRGB (IEC 61966-2-1).

    Raises:
        DataError: the file is absent, cut short, something else, or of a kind that would lose digits or transparency.
        ImportError: PIL is not installed.
    """
    path = Path(path)
    with reading("read_png", path, HINT):
        import numpy as np

        bits, colour = _header(path)
        library = needed("PIL.Image", "PNG files")
        with warnings.catch_warnings():
            warnings.simplefilter("error", library.DecompressionBombWarning)
            with library.open(path, formats=("PNG",)) as picture:
                deep = bits == 16
                # PIL has no picture of three times 16 bits, and drops eight of them without a word.
                if (deep and colour != 0) or colour not in COLOURS:
                    raise ValueError(f"{bits} bits of kind {colour} (mode {picture.mode})")
                pixels = np.asarray(picture if deep else picture.convert(COLOURS[colour]))
        values = torch.from_numpy(np.array(pixels, dtype=np.float32)) / (65535 if deep else 255)
    image = values[None] if values.ndim == 2 else values.movedim(-1, 0).contiguous()
    if linear:
        image = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    return image


def write_png(path: str | Path, image: Tensor, *, window: tuple[float, float] = (0.0, 1.0), bits: int = 8) -> None:
    """Writes a picture; what lies outside the window is cut off.

    Args:
        path: of the file.
        image: `(C, H, W)` of one or three channels, or `(H, W)`; floats.
        window: what becomes black and what white.
        bits: 8, or 16 for grey.

    Raises:
        ValueError: the image is of another shape, complex or not finite, or the window or the bits are impossible.
        ImportError: PIL is not installed.
    """
    import numpy as np

    low, high = window
    shape = tuple(image.shape)
    grey = image.ndim == 2 or (image.ndim == 3 and shape[0] == 1)
    if not (grey or (image.ndim == 3 and shape[0] == 3)) or not image.is_floating_point():
        raise ValueError(f"write_png: got {image.dtype} {shape}, expected floats (H, W), (1, H, W) or (3, H, W)")
    if not low < high or bits not in (8, 16) or (bits == 16 and not grey):
        raise ValueError(f"write_png(window={window}, bits={bits}): expected low < high, and 8 bits, or 16 in grey")
    if not bool(image.isfinite().all()):
        raise ValueError("write_png: got values that are not finite, expected numbers; try image.nan_to_num()")
    levels = 2**bits - 1
    scaled = ((image.detach().double().cpu() - low) / (high - low)).clamp(0, 1).mul(levels).round()
    pixels = scaled.reshape(shape[-2:]) if grey else scaled.movedim(0, -1)
    array = np.ascontiguousarray(pixels.numpy().astype(np.uint8 if bits == 8 else np.uint16))
    needed("PIL.Image", "PNG files").fromarray(array).save(path, format="PNG")


def _header(path: Path) -> tuple[int, int]:
    """Bits of a channel, and the kind of colour."""
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or not start.startswith(SIGNATURE):
        raise ValueError(f"starts with bytes {start[:8].hex()}, not with those of a PNG ({SIGNATURE.hex()})")
    return start[24], start[25]

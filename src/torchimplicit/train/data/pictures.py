"""Pictures of any size as a network takes them: turned upright, cut to its shape, scaled, in its colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from torchimplicit.files import opened_picture

Colour = Literal["grey", "rgb"]
MODES = {"grey": "L", "rgb": "RGB"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
GREY = ("1", "L", "LA")  # modes of PIL


class Facts(NamedTuple):
    """What a file says before it is decoded.

    Attributes:
        size: height and width, of the picture as it is to be seen.
        grey: it has no colours.
    """

    size: tuple[int, int]
    grey: bool


class PictureFormat(NamedTuple):
    """How a network takes pictures.

    Attributes:
        colour: "grey" or "rgb".
        size: height and width; None for those of the file.
        mean: in units of the bytes, one a channel; None for the picture's own.
        std: likewise.
        levels: of the brightness; 256, but for data that has fewer.
    """

    colour: Colour
    size: tuple[int, int] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    levels: int = 256

    def read(self, path: Path) -> Tensor:
        """A picture `(C, H, W)` for the network.

        Raises:
            Exception: of many kinds, for `reading` to translate.
        """
        pixels = pixels_of(path, self.colour, self.size).float() * ((self.levels - 1) / 255 if self.levels < 256 else 1)
        if self.mean is None or self.std is None:
            return (pixels - pixels.mean()) / pixels.std().clamp(min=1.0)
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return (pixels - mean) / std


def facts_of(path: Path) -> Facts:
    """Size and colours, from the head of a file."""
    with opened_picture(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(0x0112, 1) >= 5  # EXIF's orientation: a camera on its side
        return Facts((width, height) if turned else (height, width), picture.mode in GREY)


def pixels_of(path: Path, colour: Colour, size: tuple[int, int] | None) -> Tensor:
    """The bytes of a picture, `(C, H, W)`: upright, its middle cut to the shape and scaled to the size."""
    with opened_picture(path) as picture:
        if size is not None and picture.format == "JPEG":
            picture.draft(None, (2 * max(size), 2 * max(size)))  # decodes no more than is needed
        upright = ImageOps.exif_transpose(picture).convert(MODES[colour])
        if size is not None and (upright.height, upright.width) != tuple(size):
            upright = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(upright))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def is_picture(path: Path) -> bool:
    """Whether it is one by its name; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def pictures_in(folder: Path) -> list[Path]:
    """All below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if is_picture(path) and path.is_file())


def others_in(folder: Path) -> list[Path]:
    """What is below a folder and is no picture by its name; hidden files do not count."""
    files: Iterable[Path] = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not is_picture(path) and not path.name.startswith("."))

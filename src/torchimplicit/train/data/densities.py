"""Densities in the plane, to draw from: what a flow shall learn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.files import reading
from torchimplicit.train.data.base import DataError
from torchimplicit.train.data.tables import Drawn

Shape = Literal["moons", "circles", "checkerboard", "pinwheel"]
SHAPES = ("moons", "circles", "checkerboard", "pinwheel")


class Density(Drawn):
    """Points of the plane, drawn anew from one of the usual shapes or from a picture; all of about unit size.

    Args:
        shape: "moons", "circles" (both of scikit-learn, noise 0.1 and 0.05), "checkerboard", "pinwheel"; or the path
            of a picture: the darker, the likelier.
        samples: see `Drawn`.
        eval_samples: see `Drawn`.
        batch_size: see `Drawn`.
        seed: see `Drawn`.

    Raises:
        DataError: the picture is absent or no picture.
    """

    def __init__(
        self,
        shape: str = "moons",
        samples: int = 10_000,
        eval_samples: int = 5_000,
        batch_size: int = 500,
        seed: int = 0,
    ):
        """Draws nothing yet."""
        super().__init__(samples, eval_samples, batch_size, seed)
        self.shape = shape
        known = shape in SHAPES or Path(shape).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp")
        require(self, "shape", known, f"one of {', '.join(SHAPES)}, or the path of a picture")
        self.save_hyperparameters()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor]:
        """Points `(count, 2)`."""
        if self.shape == "checkerboard":
            points = _checkerboard(count, generator)
        elif self.shape == "pinwheel":
            points = _pinwheel(count, generator)
        elif self.shape in SHAPES:
            points = _of_sklearn(self.shape, count, generator)
        else:
            points = _of_picture(Path(self.shape), count, generator)
        return (points,)


def _of_sklearn(shape: str, count: int, generator: torch.Generator) -> Tensor:
    from sklearn import datasets

    state = int(torch.randint(2**31, (1,), generator=generator))
    if shape == "moons":
        points = datasets.make_moons(count, noise=0.1, random_state=state)[0]
        return torch.from_numpy(points).float() * 1.5 - torch.tensor([0.75, 0.375])
    points = datasets.make_circles(count, noise=0.05, factor=0.5, random_state=state)[0]
    return torch.from_numpy(points).float() * 2


def _checkerboard(count: int, generator: torch.Generator) -> Tensor:
    """Every other field of four by four, of [-2, 2] squared."""
    column = torch.randint(4, (count,), generator=generator)
    row = 2 * torch.randint(2, (count,), generator=generator) + column % 2
    place = torch.stack((column, row), 1) + torch.rand(count, 2, generator=generator)
    return place - 2


def _pinwheel(count: int, generator: torch.Generator, arms: int = 5) -> Tensor:
    """Bent arms: M. Johnson et al., arXiv 1603.06277."""
    point = torch.randn(count, 2, generator=generator) * torch.tensor([0.3, 0.1]) + torch.tensor([1.0, 0.0])
    arm = torch.randint(arms, (count,), generator=generator)
    angle = arm * 2 * torch.pi / arms + 0.25 * torch.exp(point[:, 0])
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack((cos * point[:, 0] - sin * point[:, 1], sin * point[:, 0] + cos * point[:, 1]), 1)


def _of_picture(path: Path, count: int, generator: torch.Generator) -> Tensor:
    """Points of dark places, spread within their pixels."""
    from PIL import Image

    hint = "Expected a picture to draw from; try the path of a PNG or JPEG file."
    with reading("Density", path, hint), Image.open(path) as picture:
        picture = picture.convert("L")
        picture.thumbnail((256, 256))
        grey = torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(picture.height, picture.width)
    weight = (255 - grey).flatten()
    if not bool(weight.sum() > 0):
        raise DataError(f"{path}: the picture is white all over, so there is nothing to draw. Try a darker one.")
    place = torch.multinomial(weight, count, replacement=True, generator=generator)
    point = torch.stack((place % grey.shape[1], place // grey.shape[1]), 1) + torch.rand(count, 2, generator=generator)
    centre = torch.tensor([grey.shape[1], grey.shape[0]]) / 2
    return (point - centre) * torch.tensor([4.0, -4.0]) / max(grey.shape)

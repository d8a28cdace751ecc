"""Linear transforms as ITK and ANTs write them in text: .tfm or .txt, in LPS."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.files import read_bytes, reading
from torchimplicit.imaging.register.transform import Linear

HEAD = "#Insight Transform File V1.0"
HINT = (
    "Expected a text file of ITK with one affine transform; try SimpleITK to write another one as such: "
    "AffineTransform(t.GetMatrix(), t.GetTranslation(), t.GetCenter())."
)
KIND = re.compile(r"(AffineTransform|MatrixOffsetTransformBase)_(?:double|float)_([23])_\2")
NUMBERS = ("Parameters", "FixedParameters")
SUFFIXES = (".tfm", ".txt")


def read_transform(path: str | Path) -> Linear:
    """A linear transform from a text file of ITK: of points of the fixed world to the moving one.

    Three dimensions are LPS in the file and RAS+ here, in millimetres. Two are a picture's: ITK counts columns first,
    in pixels, and here rows are first.

    Args:
        path: of the file.

    Raises:
        DataError: the file is absent, something else, or of a transform that is not linear, or is singular.
    """
    path = Path(path)
    with reading("read_transform", path, HINT):
        if not path.is_file():
            raise ValueError("no such file")
        found = Linear(_turned(_matrix(read_bytes(path).decode("utf-8")))[None])
        found.inverse()  # refuses what is singular
        return found


def write_transform(path: str | Path, transform: Linear) -> None:
    """Writes a linear transform as ITK and ANTs read it: see `read_transform`.

    Args:
        path: ends in .tfm or .txt.
        transform: of one sample.

    Raises:
        TypeError: the transform is not linear; a deformation is a field, see `write_displacement`.
        ValueError: it is of several samples, singular, not finite, or the path ends otherwise.
    """
    path = Path(path)
    if not isinstance(transform, Linear):
        raise TypeError(
            f"write_transform: got a {type(transform).__name__}, expected a Linear one; try write_displacement"
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(f"write_transform: got {path}, expected a path that ends in .tfm or .txt")
    if len(transform.matrix) != 1 or not bool(transform.matrix.isfinite().all()):
        raise ValueError(
            f"write_transform: got matrices {tuple(transform.matrix.shape)}, expected one sample of finite numbers"
        )
    transform.inverse()  # refuses what is singular
    matrix = _turned(transform.matrix[0].detach().double().cpu())
    space = len(matrix) - 1
    parameters = [*matrix[:-1, :-1].flatten().tolist(), *matrix[:-1, -1].tolist()]
    lines = [
        HEAD,
        "#Transform 0",
        f"Transform: AffineTransform_double_{space}_{space}",
        f"Parameters: {' '.join(map(repr, parameters))}",
        f"FixedParameters: {' '.join(['0'] * space)}",
    ]
    path.write_text("\n".join(lines) + "\n")


def _matrix(text: str) -> Tensor:
    """That of the one transform in a text, as ITK has it: `A (x - center) + center + translation`."""
    if not text.startswith(HEAD):
        raise ValueError(f"it starts with {text[:30]!r}")
    fields = re.findall(r"^(\w+): *(.*?) *$", text, re.MULTILINE)
    found, kinds = dict(fields), [value for name, value in fields if name == "Transform"]
    kind = KIND.fullmatch(kinds[0]) if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(f"it holds {', '.join(kinds) or 'no transform'}")
    space = int(kind[2])
    numbers, center = (
        torch.tensor([float(word) for word in found.get(name, "").split()], dtype=torch.float64, device="cpu")
        for name in NUMBERS
    )
    if (len(numbers), len(center)) != (space * (space + 1), space) or not numbers.isfinite().all():
        raise ValueError(f"it holds {len(numbers)} parameters, expected {space * (space + 1)} finite numbers")
    matrix = torch.eye(space + 1, dtype=torch.float64, device="cpu")
    matrix[:-1, :-1] = numbers[: space**2].view(space, space)
    matrix[:-1, -1] = numbers[space**2 :] + center - matrix[:-1, :-1] @ center
    return matrix


def _turned(matrix: Tensor) -> Tensor:
    """From RAS to LPS or back; in two dimensions from rows and columns to columns and rows or back."""
    if len(matrix) == 3:
        order = [1, 0, 2]
        return matrix[order][:, order]
    flip = matrix.new_tensor([-1, -1, 1, 1])
    return flip[:, None] * matrix * flip

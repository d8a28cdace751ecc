"""What `register` reads and writes: volumes in NIfTI and pictures in PNG, under the same few functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.imaging import Image, read_displacement, read_nifti, read_png, write_nifti, write_png
from torchimplicit.imaging.register import Displacement, Linear, Transform
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.train.errors import UsageError

VOLUMES = (".nii", ".nii.gz")
PICTURES = (".png",)
Scene = Image | Tensor  # a volume, or a picture (1, C, H, W) in pixels


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its name, and not a volume.

    Raises:
        UsageError: it is neither.
    """
    name = path.name.lower()
    if not name.endswith((*VOLUMES, *PICTURES)):
        raise UsageError(f"{path}: expected a volume, {' or '.join(VOLUMES)}, or a picture, {PICTURES[0]}.")
    return name.endswith(PICTURES)


def read_scene(path: Path) -> Scene:
    """An image, in single precision.

    Raises:
        DataError: the file cannot be read.
        UsageError: it holds several volumes, or complex values.
    """
    found = _read(path)
    return Image(found.data.float(), found.affine) if isinstance(found, Image) else found


def _read(path: Path) -> Scene:
    if is_picture(path):
        return read_png(path)[None]
    image = read_nifti(path)
    if image.data.is_complex():
        raise UsageError(f"{path}: got complex values, expected real ones. Try their magnitude.")
    if image.data.ndim != 3:
        raise UsageError(
            f"{path}: got {tuple(image.data.shape)}, {image.data.shape[3]} volumes, expected one, (X, Y, Z). "
            "Try one of them, or their mean: nibabel.four_to_three splits a file."
        )
    return image


def read_labels(path: Path, image: Scene, name: str) -> Scene:
    """Labels of an image that was read, as integers; whole numbers in floats are taken as such.

    Args:
        path: of the file. A picture's labels are its bytes.
        image: that they are of.
        name: of that, for errors.

    Raises:
        DataError: see `read_scene`.
        UsageError: values that are no integers, or another grid.
    """
    labels = _read(path)
    values = labels.data if isinstance(labels, Image) else (255 * labels).double().mul(1e3).round().div(1e3)
    if isinstance(labels, Tensor) and labels.shape[1] != 1:
        raise UsageError(f"{path}: got {labels.shape[1]} channels, expected labels, a PNG of grey.")
    _check_grid(path, labels, image, f"the {name} image", "the labels lie elsewhere")
    broken = values[values != values.round()] if values.is_floating_point() else values[:0]
    if broken.numel():
        raise UsageError(
            f"{path}: got values such as {broken.flatten()[0]:.6g}, expected labels, which are integers. Are these "
            "probabilities, or labels that were blended when they were resampled?"
        )
    values = values.to(torch.int64)
    if not bool(values.any()):
        raise UsageError(f"{path}: got no label but 0, which is the background.")
    return Image(values, labels.affine) if isinstance(labels, Image) else values


def read_mask(path: Path, image: Scene, name: str) -> Scene:
    """What counts of an image that was read: every voxel that is not zero.

    Args:
        path: of the file.
        image: that it is of.
        name: of that, for errors.

    Raises:
        DataError: see `read_scene`.
        UsageError: values that are not finite or below zero, or another grid.
    """
    mask = _read(path)
    values = mask.data if isinstance(mask, Image) else mask
    if isinstance(mask, Tensor) and mask.shape[1] != 1:
        raise UsageError(f"{path}: got {mask.shape[1]} channels, expected a mask, a PNG of grey.")
    _check_grid(path, mask, image, f"the {name} image", "the mask lies elsewhere")
    if not bool((values.double().isfinite() & (values >= 0)).all()):
        raise UsageError(
            f"{path}: got values that are negative or not finite, expected a mask, 0 where nothing counts."
        )
    return Image((values > 0).float(), mask.affine) if isinstance(mask, Image) else (values > 0).float()


def read_field(path: Path, image: Scene, name: str) -> Transform:
    """A displacement to start from, as `--field` writes it: what it does to all alike, and the rest before that.

    A deformation goes on from its linear part, the nearest to it by least squares, which has no penalty.

    Args:
        path: of the file.
        image: the fixed one, on whose grid it is.
        name: of that, for errors.

    Raises:
        DataError: the file cannot be read, or holds no field.
        UsageError: a field of another grid, or with values that are not finite.
    """
    field = read_displacement(path)
    scene = field if isinstance(field, Image) else field[None]
    if isinstance(field, Image) != isinstance(image, Image):
        got = "a volume's" if isinstance(field, Image) else "a picture's"
        raise UsageError(f"{path}: got {got} field, expected one of as many dimensions as the {name} image has.")
    _check_grid(path, scene, image, f"the {name} image", "the field lies elsewhere")
    u = (field.data.movedim(3, 0) if isinstance(field, Image) else field).double()
    if not bool(u.isfinite().all()):
        raise UsageError(f"{path}: got {int((~u.isfinite()).sum())} values that are NaN or infinite, expected a field.")
    grid = Grid.of(scene)
    points = grid.points(u)
    moved = points + u.flatten(1).mT
    ones = points.new_ones(len(points), 1)
    matrix = torch.eye(grid.space + 1, dtype=u.dtype)
    matrix[:-1] = torch.linalg.lstsq(torch.cat((points, ones), 1), moved).solution.mT
    base = Linear(matrix[None])
    rest = grid.voxels_of(base.inverse()(moved[None])) - grid.voxels_of(points)
    return Displacement(rest.mT.unflatten(2, grid.size), grid).then(base)


def _check_grid(path: Path, scene: Scene, image: Scene, name: str, words: str) -> None:
    got, expected = Grid.of(scene), Grid.of(image)
    if got.space != expected.space or got.size != expected.size:
        raise UsageError(f"{path}: got {_words(got.size)}, expected {_words(expected.size)} as {name}.")
    if not torch.allclose(got.affine, expected.affine, atol=1e-3):
        raise UsageError(
            f"{path}: got the affine {got.affine.tolist()}, expected that of {name}, "
            f"{expected.affine.tolist()}: {words}. Try to resample onto its grid."
        )


def _words(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def write_scene(path: Path, scene: Scene) -> None:
    """Writes an image; labels of a picture, which are integers, as bytes."""
    if isinstance(scene, Image):
        write_nifti(path, scene)
    else:
        write_png(path, scene[0] if scene.is_floating_point() else scene[0].float() / 255)

"""NIfTI, by nibabel: images with their place, and fields of displacements as ITK and ANTs have them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchimplicit.files import reading, require_size
from torchimplicit.imaging.files.extra import needed
from torchimplicit.imaging.image import Image

HINT = "Expected a NIfTI file, .nii or .nii.gz; try nibabel to convert another format."
MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
DISPLACEMENTS = 1006  # the intent code NIFTI_INTENT_DISPVECT
PLAIN = {torch.bool: torch.uint8, torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.int64: torch.int32}


def read_nifti(path: str | Path, affine: Tensor | None = None) -> Image:
    """An image of three or four dimensions, NIfTI-1 or NIfTI-2, in millimetres.

    The place is that of the sform, else of the qform: the first is an affine, the second a rotation. A file that has
    neither says nothing of left and right, and is refused. Values are scaled as the header says, then float32 (float64
    if they were stored so); unscaled integers stay integers, so that labels stay labels.

    Args:
        path: of the file.
        affine: `(4, 4)`, in place of what the file says.

    Raises:
        DataError: the file is absent, cut short, something else, or has no orientation.
        ImportError: nibabel is not installed.
    """
    path = Path(path)
    with reading("read_nifti", path, HINT):
        data, header = _read(path)
        if len(header.get_data_shape()) not in (3, 4):
            raise ValueError(
                f"{len(header.get_data_shape())} dimensions {header.get_data_shape()}, expected 3 or 4; "
                "try read_displacement for a field of vectors"
            )
        return Image(data, _affine(header) if affine is None else affine)


def write_nifti(path: str | Path, image: Image) -> None:
    """Writes an image, its affine as sform and qform; as NIfTI-2 where an axis is too long for NIfTI-1.

    Half precision is widened to float32, booleans to bytes, int64 narrowed to int32.

    Args:
        path: ends in .nii or .nii.gz.
        image: to be written.

    Raises:
        ValueError: the path ends otherwise, or integers do not fit into 32 bits.
        ImportError: nibabel is not installed.
    """
    _write(Path(path), image.data, image.affine)


def read_displacement(path: str | Path) -> Image:
    """A field of displacements as `write_displacement` writes it: `data` is `(X, Y, Z, 3)` in millimetres, RAS+.

    Args:
        path: of a NIfTI file `(X, Y, Z, 1, 3)`, whose vectors are LPS as ITK and ANTs write them.

    Raises:
        DataError: as `read_nifti`; or the file holds no such field.
        ImportError: nibabel is not installed.
    """
    path = Path(path)
    with reading("read_displacement", path, HINT):
        data, header = _read(path)
        shape, intent = tuple(data.shape), int(header["intent_code"])
        if len(shape) != 5 or shape[3:] != (1, 3) or intent not in (DISPLACEMENTS, 1007):
            raise ValueError(f"{shape} of intent {intent}, expected (X, Y, Z, 1, 3) of intent 1006 or 1007 (vectors)")
        return Image(data[:, :, :, 0] * data.new_tensor([-1, -1, 1]), _affine(header))


def write_displacement(path: str | Path, field: Image) -> None:
    """Writes a field of displacements for ITK and ANTs: `(X, Y, Z, 1, 3)`, intent 1006, vectors in LPS.

    Args:
        path: ends in .nii or .nii.gz.
        field: `data` is `(X, Y, Z, 3)`, in millimetres along the axes of the world, RAS+: not in voxels.

    Raises:
        ValueError: the data is not such a field, or the path ends otherwise.
        ImportError: nibabel is not installed.
    """
    data = field.data
    if data.ndim != 4 or data.shape[3] != 3 or not data.is_floating_point():
        raise ValueError(f"write_displacement: got {data.dtype} {tuple(data.shape)}, expected floats (X, Y, Z, 3)")
    _write(Path(path), (data * data.new_tensor([-1, -1, 1]))[:, :, :, None], field.affine, DISPLACEMENTS)


def _read(path: Path) -> tuple[Tensor, Any]:
    """Values and header."""
    import numpy as np

    nibabel = needed("nibabel", "NIfTI files")
    if not path.is_file():
        raise ValueError("no such file")
    file = nibabel.load(path)
    if not isinstance(file, (nibabel.Nifti1Image, nibabel.Nifti2Image)):
        raise ValueError(f"a file of {type(file).__name__}")
    header = file.header
    kind = header.get_data_dtype()
    if kind.kind not in "iufc":
        raise ValueError(f"values of {kind}, expected numbers")
    require_size(math.prod(header.get_data_shape()) * max(kind.itemsize, 4))
    values = np.asanyarray(file.dataobj)
    if file.dataobj.slope != 1 or file.dataobj.inter != 0:  # scaled: nibabel computes in float64
        values = values.astype(np.float64 if kind == np.float64 else np.float32)
    # torch has no operations on integers without a sign but bytes; big-endian files are turned round.
    wider = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(values.dtype.name, values.dtype.name)
    return torch.from_numpy(np.array(values, dtype=wider)), header


def _affine(header: Any) -> Tensor:
    """Of the sform, else of the qform, in millimetres."""
    for get in (header.get_sform, header.get_qform):
        found, code = get(coded=True)
        if code:
            scale = MILLIMETRES[header.get_xyzt_units()[0]]
            return torch.diag(torch.tensor([scale, scale, scale, 1.0], dtype=torch.float64)) @ torch.from_numpy(found)
    raise ValueError(
        "neither sform nor qform, so left and right are unknown; try read_nifti(path, affine=...) if you know them"
    )


def _write(path: Path, data: Tensor, affine: Tensor, intent: int = 0) -> None:
    nibabel = needed("nibabel", "NIfTI files")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"got {path}, expected a path that ends in .nii or .nii.gz")
    data = data.detach().cpu()
    if data.dtype == torch.int64 and bool((data.abs() >= 2**31).any()):
        raise ValueError(f"{path}: got integers up to {data.abs().max()}, expected 32 bits; try .double()")
    data = data.to(PLAIN.get(data.dtype, data.dtype))
    kind = nibabel.Nifti1Image if max(data.shape) < 2**15 else nibabel.Nifti2Image
    file = kind(data.numpy(), affine.numpy())
    file.set_sform(affine.numpy(), code=1)
    file.set_qform(affine.numpy(), code=1)
    file.header.set_xyzt_units("mm")
    file.header["intent_code"] = intent
    nibabel.save(file, path)

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
# ITK takes vectors of NIFTI_INTENT_VECTOR as they are, which is in LPS, and those of NIFTI_INTENT_DISPVECT to be in RAS
# as all else in NIfTI (since 5.4; before, it could not read them). It writes the former, as ANTs does.
VECTORS, DISPLACEMENTS = 1007, 1006
PICTURE = torch.diag(
    torch.tensor([-1.0, -1.0, 1.0, 1.0], device="cpu")
)  # where ITK has a picture's pixels at their own indices
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


def read_displacement(path: str | Path) -> Image | Tensor:
    """A field of displacements as `write_displacement`, ITK and ANTs write it.

    Args:
        path: of a NIfTI file `(X, Y, Z, 1, 3)`, or `(W, H, 1, 1, 2)` of a picture. Vectors of intent 1007 are LPS, as
            ITK's, those of intent 1006 RAS, as NIfTI's.

    Returns:
        An `Image` whose `data` is `(X, Y, Z, 3)` in millimetres, RAS+; of a picture `(2, H, W)`, in pixels.

    Raises:
        DataError: as `read_nifti`; or the file holds no such field.
        ImportError: nibabel is not installed.
    """
    path = Path(path)
    with reading("read_displacement", path, HINT):
        data, header = _read(path)
        shape, intent = tuple(data.shape), int(header["intent_code"])
        flat = shape[2:] == (1, 1, 2)
        if len(shape) != 5 or not (shape[3:] == (1, 3) or flat) or intent not in (VECTORS, DISPLACEMENTS):
            raise ValueError(f"{shape} of intent {intent}, expected (X, Y, Z, 1, 3) of intent 1006 or 1007 (vectors)")
        vectors = data[:, :, 0, 0] if flat else data[:, :, :, 0]
        if flat == (intent == DISPLACEMENTS):  # a picture's x and y are those of the file's LPS
            vectors = vectors * vectors.new_tensor([-1, -1, 1][: vectors.shape[-1]])
        if not flat:
            return Image(vectors, _affine(header))
        if not torch.allclose(_affine(header), PICTURE.double()):
            raise ValueError("a picture's field with a place in the world, expected one in pixels")
        return vectors.permute(2, 1, 0).flip(0).contiguous()  # ITK counts columns first


def write_displacement(path: str | Path, field: Image | Tensor) -> None:
    """Writes a field of displacements as ITK and ANTs do: `(X, Y, Z, 1, 3)`, intent 1007, vectors in LPS.

    Args:
        path: ends in .nii or .nii.gz.
        field: `data` is `(X, Y, Z, 3)`, in millimetres along the axes of the world, RAS+: not in voxels. Of a picture,
            a tensor `(2, H, W)` in pixels, along rows and columns.

    Raises:
        ValueError: the data is not such a field, or the path ends otherwise.
        ImportError: nibabel is not installed.
    """
    data = field.data if isinstance(field, Image) else field
    shape = tuple(data.shape)
    fine = (len(shape) == 4 and shape[3] == 3) if isinstance(field, Image) else (len(shape) == 3 and shape[0] == 2)
    if not fine or not data.is_floating_point():
        raise ValueError(
            f"write_displacement: got {data.dtype} {shape}, expected floats: an Image (X, Y, Z, 3), or (2, H, W)"
        )
    if isinstance(field, Image):
        _write(Path(path), (data * data.new_tensor([-1, -1, 1]))[:, :, :, None], field.affine, VECTORS)
    else:
        _write(Path(path), data.flip(0).permute(2, 1, 0)[:, :, None, None], PICTURE, VECTORS)


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
            return torch.diag(
                torch.tensor([scale, scale, scale, 1.0], dtype=torch.float64, device="cpu")
            ) @ torch.from_numpy(found)
    raise ValueError(
        "neither sform nor qform, so left and right are unknown; if you know them try read_nifti(path, affine=...), "
        "or write them into the file by nibabel's set_sform"
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

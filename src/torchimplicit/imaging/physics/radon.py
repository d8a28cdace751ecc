r"""Line integrals of images: a sparse matrix for the way there, and its transpose for the way back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import require_count
from torchimplicit.imaging.physics.check import check_images
from torchimplicit.imaging.physics.operator import Operator


class Radon(Operator):
    r"""Parallel-beam projections: images `(B, ..., N, N)` to sinograms `(B, ..., angles, N)`.

    An image is turned about pixel `N // 2`, interpolated linearly, and its columns are summed, as
    `skimage.transform.radon(circle=True)` does it. Both ways are products with one sparse matrix, built once, so that
    the adjoint is one to rounding; `skimage.transform.iradon` is none. What lies outside the inscribed circle is seen
    by some angles only. Not differentiable in the angles.

    The matrix takes about 3 N^2 entries an angle, 12 bytes each in single precision, and as much for its transpose.

    Args:
        size: pixels a side, `N`.
        angles: in degrees; a tensor of float64 makes a matrix in double precision.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> op = ti.imaging.Radon(3, [0.0, 90.0])
        >>> op.A(torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]]))
        tensor([[[1., 2., 3.],
                 [0., 6., 0.]]])
    """

    def __init__(self, size: int, angles: Sequence[float] | Tensor):
        """Builds the matrix.

        Raises:
            ValueError: no size, no angles, or angles that are no finite numbers in a row.
        """
        super().__init__()
        require_count("Radon", size=size)
        angles = torch.as_tensor(angles)
        if angles.dim() != 1 or not len(angles) or not bool(angles.isfinite().all()):
            raise ValueError(f"Radon(angles=...): got shape {tuple(angles.shape)}, expected finite numbers (angles,)")
        self.size, self.count = size, len(angles)
        dtype = angles.dtype if angles.is_floating_point() else torch.get_default_dtype()
        matrix = _matrix(size, torch.deg2rad(angles.double())).to(dtype)
        for name, each in (("", matrix), ("back_", matrix.t().coalesce())):
            for part, value in zip(("rows", "columns", "values"), _compressed(each), strict=True):
                self.register_buffer(name + part, value, persistent=False)

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        check_images("Radon", x, "...", self.size, self.size)
        return self._times(x, False).unflatten(-1, (self.count, self.size))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        check_images("Radon", y, "...", self.count, self.size, name="measurements")
        return self._times(y, True).unflatten(-1, (self.size, self.size))

    def norm(self, like: Tensor | None = None, rtol: float = 1e-3, max_steps: int = 64) -> Tensor:
        """See `Operator.norm`."""
        values = self._parts("")[2]
        return super().norm(values.new_empty(1, self.size, self.size) if like is None else like, rtol, max_steps)

    def _times(self, x: Tensor, back: bool) -> Tensor:
        if x.is_complex():
            return torch.complex(self._times(x.real, back), self._times(x.imag, back))
        pair = _Pair(self._parts(""), self._parts("back_"))
        flat = x.flatten(-2)
        found: Any = _Product.apply(flat.reshape(-1, flat.shape[-1]), pair.T if back else pair)
        return found.unflatten(0, flat.shape[:-1])

    def _parts(self, name: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name + part) for part in ("rows", "columns", "values"))


@dataclass(frozen=True, eq=False)
class _Pair:
    """The parts of a sparse matrix and of its transpose: what `torch.vmap` does not look into, knowing of no sparse."""

    parts: tuple[Tensor, ...]
    transpose: tuple[Tensor, ...]

    @property
    def T(self) -> _Pair:
        """The other way round."""
        return _Pair(self.transpose, self.parts)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The matrix in the precision of images."""
        rows, columns, values = self.parts
        shape = len(rows) - 1, len(self.transpose[0]) - 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            return torch.sparse_csr_tensor(rows, columns, values.to(dtype), shape, check_invariants=False)


class _Product(transforms.ForwardOnce):
    """Rows `(B, n)` times the first matrix of a pair, whose second is its transpose."""

    @staticmethod
    def forward(x: Tensor, pair: _Pair) -> Tensor:
        """`(B, m)`."""
        return (pair.matrix(x.dtype) @ x.mT.contiguous()).mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps the matrices."""
        ctx.pair = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The transpose."""
        return _Product.apply(grad, ctx.pair.T), None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, pair: None) -> Tensor:
        """The same."""
        return _Product.apply(x, ctx.pair)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, pair: _Pair) -> tuple[Tensor, int]:
        """The mapped dimension joins the batch."""
        x = x.movedim(in_dims[0], 0)
        found: Any = _Product.apply(x.flatten(0, 1), pair)
        return found.unflatten(0, x.shape[:2]), 0


def _matrix(size: int, angles: Tensor) -> Tensor:
    """The projections as a sparse matrix `(angles * N, N * N)` in double precision, coalesced."""
    place = torch.arange(size, dtype=torch.float64) - size // 2
    down, right = torch.meshgrid(place, place, indexing="ij")
    detector = torch.arange(size).expand(size, size)
    indices, values = [], []
    for number, angle in enumerate(angles.tolist()):
        cosine, sine = math.cos(angle), math.sin(angle)
        column, row = cosine * right + sine * down + size // 2, cosine * down - sine * right + size // 2
        parts = []
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            near, beside = row.floor() + a, column.floor() + b
            weight = (1 - (row - near).abs()) * (1 - (column - beside).abs())
            seen = (near >= 0) & (near < size) & (beside >= 0) & (beside < size) & (weight > 1e-12)
            entry = torch.stack([number * size + detector, (near * size + beside).long()])
            parts.append((entry[:, seen], weight[seen]))
        entry, weight = (torch.cat(each, -1) for each in zip(*parts, strict=True))
        one = torch.sparse_coo_tensor(entry, weight, (len(angles) * size, size**2), check_invariants=False).coalesce()
        indices.append(one.indices())
        values.append(one.values())
    shape = (len(angles) * size, size**2)
    found = torch.sparse_coo_tensor(torch.cat(indices, 1), torch.cat(values), shape, check_invariants=False)
    return found.coalesce()


def _compressed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each row begins, the columns and the values of a coalesced sparse matrix."""
    row, column = matrix.indices()
    begins = torch.zeros(matrix.shape[0] + 1, dtype=torch.int64)
    begins[1:] = torch.bincount(row, minlength=matrix.shape[0]).cumsum(0)
    return begins, column.clone(), matrix.values()

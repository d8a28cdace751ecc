r"""Line integrals of images: a sparse matrix for the way there, and its transpose for the way back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import require_count
from torchimplicit.imaging.physics.check import check_images
from torchimplicit.imaging.physics.normal import added
from torchimplicit.imaging.physics.operator import Operator


class Radon(Operator):
    r"""Parallel-beam projections: images `(B, ..., N, N)` to sinograms `(B, ..., angles, N)`.

    An image is turned about pixel `N // 2`, interpolated linearly, and its columns are summed, as
    `skimage.transform.radon(circle=True)` does it. Both ways are products with one sparse matrix, built once, so that
    the adjoint is one to rounding; `skimage.transform.iradon` is none. What lies outside the inscribed circle is seen
    by some angles only.

    Differentiable in the angles, for scanners whose geometry is not known exactly: in that of angles which want a
    gradient when the operator is built, so build it anew after a step of theirs. Linear interpolation has kinks where a
    point lies on a row or column of pixels, as all do at multiples of 90 degrees: there the gradient is that of one
    side. All samples have the same angles.

    The matrix takes about 3 N^2 entries an angle, 12 bytes each in single precision, and as much for its transpose; a
    gradient by the angles as many numbers for each image.

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
        angles = torch.as_tensor(angles, device="cpu")
        if transforms.hides_batch(angles):
            raise NotImplementedError("Radon does not work of angles that torch.vmap maps; try one after another")
        if angles.dim() != 1 or not len(angles) or not bool(angles.isfinite().all()):
            raise ValueError(f"Radon(angles=...): got shape {tuple(angles.shape)}, expected finite numbers (angles,)")
        self.size, self.count = size, len(angles)
        dtype = angles.dtype if angles.is_floating_point() else torch.get_default_dtype()
        row, column, values = _entries(size, torch.deg2rad(angles.double()))
        back = torch.argsort(column, stable=True)
        parts = {
            "begins": _begins(row, self.count * size),
            "columns": column,
            "values": values.to(dtype),
            "back_begins": _begins(column, size**2),
            "back_columns": row[back],
            "back_values": values.to(dtype)[back],
        }
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

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
        values = self._half("").values
        return super().norm(values.new_empty(1, self.size, self.size) if like is None else like, rtol, max_steps)

    def _times(self, x: Tensor, back: bool) -> Tensor:
        if x.is_complex():
            return torch.complex(self._times(x.real, back), self._times(x.imag, back))
        there, other = (self._half(name) for name in (("back_", "") if back else ("", "back_")))
        flat = x.flatten(-2)
        values = there.values.to(x), other.values.to(x)
        found: Any = _Product.apply(flat.reshape(-1, flat.shape[-1]), *values, _Pattern(there, other))
        return found.unflatten(0, flat.shape[:-1])

    def _half(self, name: str) -> _Half:
        return _Half(*(getattr(self, name + part) for part in _Half._fields))


class _Half(NamedTuple):
    """A sparse matrix by its rows."""

    begins: Tensor
    columns: Tensor
    values: Tensor


class _Pattern:
    """Where two sparse matrices, each the other's transpose, have entries: `torch.vmap` does not look into it.

    Args:
        there: one matrix.
        back: its transpose.
    """

    def __init__(self, there: _Half, back: _Half):
        self.there, self.back = there, back

    @property
    def T(self) -> _Pattern:
        """The other way round."""
        return _Pattern(self.back, self.there)

    def matrix(self, values: Tensor) -> Tensor:
        """The matrix with other values."""
        shape = len(self.there.begins) - 1, len(self.back.begins) - 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            return torch.sparse_csr_tensor(*self.there[:2], values, shape, device=values.device, check_invariants=False)

    def outer(self, y: Tensor, x: Tensor) -> Tensor:
        """The sum of $y x^T$ over samples, of rows `(B, m)` and `(B, n)`, where the matrix has entries."""
        rows = torch.repeat_interleave(self.there.begins.diff())
        return (y[:, rows] * x[:, self.there.columns]).sum(0)


class _Product(transforms.ForwardOnce):
    """Rows `(B, n)` times a matrix of such values; those of its transpose are needed for the way back."""

    @staticmethod
    def forward(x: Tensor, values: Tensor, back: Tensor, pattern: _Pattern) -> Tensor:
        """`(B, m)`."""
        # Contiguous: sums along strided rows are rounded in another order, by the number of samples.
        return (pattern.matrix(values) @ x.mT.contiguous()).mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps what derivatives need."""
        *tensors, ctx.pattern = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """The transpose; and by the values, an outer product where they are."""
        x, values, back = transforms.saved(ctx)
        by_values = ctx.pattern.outer(grad, x) if ctx.needs_input_grad[1] else None
        by_x: Any = _Product.apply(grad, back, values, ctx.pattern.T)
        return by_x, by_values, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, values: Tensor | None, back: Tensor | None, pattern: None) -> Tensor:
        """The product rule."""
        point, held, transpose = transforms.saved(ctx)
        moved: list[Tensor] = []
        if x is not None:
            moved.append(_Product.apply(x, held, transpose, ctx.pattern))
        if values is not None:
            moved.append(_Product.apply(point, values, transpose, ctx.pattern))
        return added(moved)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        """The mapped dimension joins the batch; of matrices that are mapped, too, one after another."""
        x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        if in_dims[1] is None and in_dims[2] is None:
            found: Any = _Product.apply(x.flatten(0, 1), *rest)
            return found.unflatten(0, x.shape[:2]), 0
        values, back = (
            part.expand(info.batch_size, -1) if dim is None else part.movedim(dim, 0)
            for part, dim in zip(rest[:2], in_dims[1:3], strict=True)
        )
        each: list[Any] = [_Product.apply(*some, rest[2]) for some in zip(x, values, back, strict=True)]
        return torch.stack(each), 0


def _entries(size: int, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The projections as a sparse matrix `(angles * N, N * N)`: rows, columns and values, row by row."""
    found = [_of_angle(size, angle) for angle in angles]
    rows = torch.cat([number * size + row for number, (row, _, _) in enumerate(found)])
    return rows, torch.cat([column for _, column, _ in found]), torch.cat([values for *_, values in found])


def _of_angle(size: int, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix of one angle, differentiable in it: detector, pixel, and how much of it is seen."""
    place = torch.arange(size, dtype=torch.float64, device=angle.device) - size // 2
    down, right = torch.meshgrid(place, place, indexing="ij")
    detector = torch.arange(size, device=angle.device).expand(size, size)
    cosine, sine = angle.cos(), angle.sin()
    column, row = cosine * right + sine * down + size // 2, cosine * down - sine * right + size // 2
    places, weights = [], []
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        near, beside = row.detach().floor() + a, column.detach().floor() + b
        weight = (1 - (row - near).abs()) * (1 - (column - beside).abs())
        seen = (near >= 0) & (near < size) & (beside >= 0) & (beside < size) & (weight > 1e-12)
        places.append((detector * size**2 + (near * size + beside).long())[seen])
        weights.append(weight[seen])
    entries, where = torch.unique(torch.cat(places), return_inverse=True)  # sorted, so by detector, then by pixel
    values = place.new_zeros(len(entries)).index_add(0, where, torch.cat(weights))
    return entries // size**2, entries % size**2, values


def _begins(rows: Tensor, count: int) -> Tensor:
    """Where each of so many rows begins, of entries sorted by their row, and where the last ends."""
    return torch.nn.functional.pad(torch.bincount(rows, minlength=count).cumsum(0), (1, 0))

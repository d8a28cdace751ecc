"""Displacements in coordinates in which smoothness is a weight: cosines on the voxels, or on a lattice of splines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.imaging.register.axes import along
from torchimplicit.imaging.register.sample import sample

Penalty = Literal["diffusion", "bending"]
# The cubic B-spline's integrals of products of itself, of its slopes and of its second derivatives, with those of its
# neighbours: B-splines of degree 7, 5 and 3 at whole numbers, the second and the third still to be differenced.
PRODUCTS = (
    (2416 / 5040, 1191 / 5040, 120 / 5040, 1 / 5040),
    (66 / 120, 26 / 120, 1 / 120),
    (4 / 6, 1 / 6),
)


@dataclass(frozen=True, eq=False)
class Lattice:
    r"""A space of functions on a grid, by waves of RMS 1 that are mirrored at its borders.

    Their slopes, and the mixed ones, are orthogonal. So $\tfrac12 \int |\nabla u|^2$ and the bending energy $\tfrac12
    \int \sum_{ij} (\partial_i \partial_j u)^2$ are sums over squared amplitudes, each with a weight of its own.

    Attributes:
        waves: of every axis, `(n, m)`: amplitudes to values at voxels.
        weights: of the penalty, `(*m)`.
        controls: of every axis, `(m, m)`: amplitudes to coefficients of splines; none where there are no splines.
    """

    waves: tuple[Tensor, ...]
    weights: Tensor
    controls: tuple[Tensor, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers of amplitudes."""
        return tuple(self.weights.shape)

    @classmethod
    def of_voxels(cls, size: Sequence[int], units: Sequence[float], penalty: Penalty, like: Tensor) -> Lattice:
        """Every displacement of the voxels; derivatives are differences of neighbours.

        Args:
            size: of the grid.
            units: edges of a voxel, in those that derivatives are in.
            penalty: what the weights are of.
            like: gives dtype and device.
        """
        angles = [torch.pi * torch.arange(n, dtype=torch.float64, device="cpu") / n for n in size]
        slopes = [(2 - 2 * angle.cos()) / unit**2 for angle, unit in zip(angles, units, strict=True)]
        weights = _over_axes([[s if i == j else None for j in range(len(size))] for i, s in enumerate(slopes)], size)
        weights = weights if penalty == "diffusion" else weights.square()
        return cls(tuple(_cosines(n).to(like) for n in size), weights.to(like))

    @classmethod
    def of_splines(
        cls, size: Sequence[int], shape: Sequence[int], units: Sequence[float], penalty: Penalty, like: Tensor
    ) -> Lattice:
        """Cubic B-splines on control points from the first voxel to the last; derivatives and integrals are exact.

        Args:
            size: of the grid of voxels.
            shape: of the lattice of control points.
            units: distances of control points, in those that derivatives are in.
            penalty: see `of_voxels`.
            like: see `of_voxels`.
        """
        axes = range(len(shape))
        angles = [torch.pi * torch.arange(m, dtype=torch.float64, device="cpu") / (m - 1) for m in shape]
        forms = [
            [(2 - 2 * angle.cos()) ** k * _symbol(PRODUCTS[k], angle) / unit ** (2 * k) for k in range(3)]
            for angle, unit in zip(angles, units, strict=True)
        ]
        if penalty == "diffusion":
            orders = [[int(i == j) for j in axes] for i in axes]
        else:  # every pair of directions, in both orders
            orders = [[int(i == k) + int(j == k) for k in axes] for i in axes for j in axes]
        weights = _over_axes([[forms[axis][k] for axis, k in zip(axes, each, strict=True)] for each in orders], shape)
        controls = tuple(_ended_cosines(m).to(like) for m in shape)
        waves = tuple(_splines(n, m).to(like) @ each for n, m, each in zip(size, shape, controls, strict=True))
        return cls(waves, weights.to(like), controls)

    def values(self, amplitudes: Tensor) -> Tensor:
        """`(B, D, *m)` to what the waves come to at voxels, `(B, D, *n)`."""
        return _along_all(amplitudes, self.waves)

    def coefficients(self, amplitudes: Tensor) -> Tensor:
        """`(B, D, *m)` to coefficients of the splines, `(B, D, *m)`."""
        return _along_all(amplitudes, self.controls)

    def amplitudes(self, values: Tensor) -> Tensor:
        """The amplitudes whose waves come nearest to values."""
        return _along_all(values, [torch.linalg.pinv(waves) for waves in self.waves])


def _along_all(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    for axis, matrix in enumerate(matrices, 2):
        x = along(x, matrix, axis)
    return x


def _over_axes(terms: Sequence[Sequence[Tensor | None]], shape: Sequence[int]) -> Tensor:
    """A sum of products of functions of one axis each, `(*m)`; None is one."""
    total = torch.zeros(*shape, dtype=torch.float64, device="cpu")
    for term in terms:
        product = torch.ones((), dtype=torch.float64, device="cpu")
        for axis, factor in enumerate(term):
            if factor is not None:
                product = product * factor.view(-1, *[1] * (len(shape) - 1 - axis))
        total = total + product
    return total


def _symbol(products: Sequence[float], angle: Tensor) -> Tensor:
    """The factor by which a symmetric filter multiplies a wave."""
    first, *rest = products
    return first + 2 * sum((c * (k * angle).cos() for k, c in enumerate(rest, 1)), torch.zeros_like(angle))


@transforms.remembered
def _cosines(n: int) -> Tensor:
    """Waves at the centres of `n` voxels, mirrored at the outer edges: the cosine transform of type 2."""
    j = torch.arange(n, dtype=torch.float64, device="cpu")
    waves = math.sqrt(2) * torch.cos(torch.pi / n * (j[:, None] + 0.5) * j)
    waves[:, 0] = 1
    return waves


@transforms.remembered
def _ended_cosines(m: int) -> Tensor:
    """Waves at `m` points, mirrored about the outermost: the cosine transform of type 1."""
    j = torch.arange(m, dtype=torch.float64, device="cpu")
    waves = math.sqrt(2) * torch.cos(torch.pi / (m - 1) * j[:, None] * j)
    waves[:, 0], waves[:, -1] = 1, torch.cos(torch.pi * j)
    return waves


@transforms.remembered
def _splines(n: int, m: int) -> Tensor:
    """Values of the cubic B-splines of `m` points, mirrored, at `n` voxels between the first and the last."""
    at = torch.linspace(0, m - 1, n, dtype=torch.float64, device="cpu")
    points = torch.eye(m, dtype=torch.float64, device="cpu")[:, None, :, None]
    where = torch.stack([at, torch.zeros_like(at)]).expand(m, -1, -1)
    return sample(points, where, interpolation="cubic", prefilter=False)[:, 0].mT

"""Where voxels lie: a size and an affine from indices to millimetres, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.imaging.image import Image

LEAST = 12  # voxels along an axis that leave something to see


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels and their place, without values: `world = affine @ (i, j, k, 1)`, in millimetres.

    Args:
        size: of the array, D numbers.
        affine: `(D + 1, D + 1)`, float64 on the CPU.
    """

    size: tuple[int, ...]
    affine: Tensor

    @classmethod
    def of(cls, image: Image | Tensor, spacing: Sequence[float] | None = None) -> Grid:
        """That of an image, or of a tensor `(B, C, *S)` with voxels of these edges along the axes of the array.

        Raises:
            ValueError: the edges are none.
        """
        if isinstance(image, Image):
            return cls(tuple(image.data.shape[:3]), image.affine)
        size = tuple(image.shape[2:])
        edges = [1.0] * len(size) if spacing is None else list(spacing)
        if len(edges) != len(size) or not all(is_number(edge) and 0 < edge < torch.inf for edge in edges):
            raise ValueError(f"spacing={spacing!r}: expected {len(size)} finite numbers > 0, an edge an axis")
        return cls(size, torch.diag(torch.tensor([*edges, 1.0], dtype=torch.float64, device="cpu")))

    @property
    def space(self) -> int:
        """The number of dimensions, D."""
        return len(self.size)

    @property
    def spacing(self) -> list[float]:
        """The edges of a voxel."""
        return self.affine[:-1, :-1].norm(dim=0).tolist()

    @property
    def edge(self) -> float:
        """That of a cube of a voxel's volume: the length that widths and steps are in."""
        return float(self.affine[:-1, :-1].norm(dim=0).log().mean().exp())

    @property
    def units(self) -> list[float]:
        """Edges in units of `edge`: lengths are in these, whatever a voxel's are."""
        return [edge / self.edge for edge in self.spacing]

    @property
    def center(self) -> Tensor:
        """The middle, in millimetres, `(D,)`."""
        middle = torch.tensor([(n - 1) / 2 for n in self.size], dtype=torch.float64, device="cpu")
        return self.affine[:-1, :-1] @ middle + self.affine[:-1, -1]

    def world_of(self, voxels: Tensor) -> Tensor:
        """Millimetres `(..., D)` of indices `(..., D)`, in their dtype."""
        affine = self.affine.to(voxels)
        return voxels @ affine[:-1, :-1].mT + affine[:-1, -1]

    def voxels_of(self, world: Tensor) -> Tensor:
        """Indices `(..., D)`, not rounded, of millimetres `(..., D)`, in their dtype."""
        inverse = torch.linalg.inv(self.affine).to(world)
        return world @ inverse[:-1, :-1].mT + inverse[:-1, -1]

    def contains(self, world: Tensor) -> Tensor:
        """Which places `(n, D)` are between the middles of voxels, `(n,)`."""
        at = self.voxels_of(world)
        return ((at >= 0) & (at <= torch.tensor(self.size, device=at.device) - 1)).all(-1)

    def points(self, like: Tensor) -> Tensor:
        """The places of all voxels, `(n, D)` in millimetres, of a tensor's dtype, on its device."""
        axes = [torch.arange(n, dtype=torch.float64, device="cpu") for n in self.size]
        at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        return self.world_of(at).to(like)

    def voxels(self, lengths: float | Tensor) -> list:
        """Lengths in units of `edge` as numbers of voxels, an axis each."""
        return [lengths * (self.edge / spacing) for spacing in self.spacing]

    def axes_within(self, limit: float) -> list[int]:
        """Axes along which voxels are shorter than a length, and many enough to be halved."""
        return [
            axis
            for axis, (n, edge) in enumerate(zip(self.size, self.spacing, strict=True))
            if n >= 2 * LEAST and edge < limit
        ]

    def halved(self, axes: Sequence[int]) -> Grid:
        """Of means over pairs of voxels along some axes; see `axes.halved`."""
        change = torch.eye(self.space + 1, dtype=torch.float64, device="cpu")
        for axis in axes:
            change[axis, axis], change[axis, -1] = 2.0, 0.5
        size = tuple(n // 2 if axis in axes else n for axis, n in enumerate(self.size))
        return Grid(size, self.affine @ change)

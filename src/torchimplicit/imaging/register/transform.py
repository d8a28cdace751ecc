"""Where points of one world are in another: linear maps, displacements, velocities, and chains of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchimplicit.core.status import OnFailure, Report
from torchimplicit.imaging.register import field as fields
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.sample import Interpolation, sample


class Transform:
    """Base of the transforms: `transform(points)` takes points of the fixed world to the moving one."""

    def __call__(self, points: Tensor) -> Tensor:
        """Points `(B, n, D)` in millimetres, moved."""
        raise NotImplementedError

    def inverse(self, on_failure: OnFailure = "raise") -> Transform:
        """The transform that leads back; an implicit one is solved for, with a status for every sample."""
        raise NotImplementedError

    def then(self, after: Transform) -> Transform:
        """First this one, then another."""
        parts = [*(self.parts if isinstance(self, Chain) else (self,))]
        parts += after.parts if isinstance(after, Chain) else (after,)
        return Chain(tuple(parts))


@dataclass(frozen=True, eq=False)
class Linear(Transform):
    """A linear map in homogeneous coordinates, rigid, similar or affine.

    Args:
        matrix: `(B, D + 1, D + 1)`, of millimetres, float64 on the CPU.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        """Refuses what is no such map."""
        shape = tuple(self.matrix.shape) if isinstance(self.matrix, Tensor) else type(self.matrix).__name__
        if not isinstance(self.matrix, Tensor) or shape[1:] not in ((3, 3), (4, 4)):
            raise ValueError(f"Linear(matrix): got {shape}, expected (B, 3, 3) or (B, 4, 4); try matrix[None]")

    def __call__(self, points: Tensor) -> Tensor:
        """See `Transform`."""
        matrix = self.matrix.to(points)
        return points @ matrix[:, :-1, :-1].mT + matrix[:, :-1, -1].unsqueeze(1)

    def inverse(self, on_failure: OnFailure = "raise") -> Linear:
        """See `Transform`.

        Raises:
            ValueError: a matrix is singular.
        """
        flat = self.matrix[:, :-1, :-1].det().abs() <= 1e-12 * self.matrix[:, :-1, :-1].norm(dim=1).prod(1)
        if bool(flat.any()):
            raise ValueError(f"inverse: the matrices of samples {flat.nonzero().flatten().tolist()} are singular")
        return Linear(torch.linalg.inv(self.matrix))

    def then(self, after: Transform) -> Transform:
        """See `Transform`; of two linear maps, one."""
        return Linear(after.matrix @ self.matrix) if isinstance(after, Linear) else super().then(after)


@dataclass(frozen=True, eq=False)
class Displacement(Transform):
    """A vector at every voxel of a grid, between them by interpolation; beyond, that of the border.

    Args:
        vectors: `(B, D, *S)`, in voxels of the grid.
        grid: where they are.
        interpolation: see `sample`.
        report: of the solve that an inverse came from; else None.
    """

    vectors: Tensor
    grid: Grid
    interpolation: Interpolation = "linear"
    report: Report | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuses a field of another grid."""
        if tuple(self.vectors.shape[2:]) != self.grid.size or self.vectors.shape[1] != self.grid.space:
            raise ValueError(
                f"{type(self).__name__}: got vectors {tuple(self.vectors.shape)} on a grid {self.grid.size}, expected "
                f"(B, {self.grid.space}, {', '.join(map(str, self.grid.size))})"
            )

    def __call__(self, points: Tensor) -> Tensor:
        """See `Transform`."""
        at = self.grid.voxels_of(points).mT
        moved = sample(self.vectors, at.to(self.vectors), interpolation=self.interpolation)
        return self.grid.world_of((at + moved).mT)

    def inverse(self, on_failure: OnFailure = "raise") -> Displacement:
        """See `Transform`, and `field.inverse`."""
        found = fields.inverse(self.vectors, interpolation=self.interpolation, on_failure=on_failure)
        return Displacement(found.value, self.grid, self.interpolation, found.report)


@dataclass(frozen=True, eq=False)
class FreeForm(Transform):
    """A displacement by cubic B-splines on a lattice of control points, mirrored at its border, and known everywhere.

    Args:
        vectors: the splines' coefficients, `(B, D, *m)`, in voxels of the lattice.
        lattice: where the control points are.
        grid: of the image; what `displacement` and `inverse` are on.
    """

    vectors: Tensor
    lattice: Grid
    grid: Grid

    def __post_init__(self) -> None:
        """Refuses coefficients of another lattice."""
        if tuple(self.vectors.shape[1:]) != (self.lattice.space, *self.lattice.size):
            raise ValueError(
                f"FreeForm: got vectors {tuple(self.vectors.shape)} on a lattice {self.lattice.size}, expected "
                f"(B, {self.lattice.space}, {', '.join(map(str, self.lattice.size))})"
            )

    def displacement(self) -> Displacement:
        """What it is at the voxels of the image."""
        points = self.grid.points(torch.zeros((), dtype=torch.float64, device=self.vectors.device))
        moved = self(points.expand(len(self.vectors), -1, -1))
        vectors = (self.grid.voxels_of(moved) - self.grid.voxels_of(points)).mT.unflatten(2, self.grid.size)
        return Displacement(vectors.to(self.vectors), self.grid, "cubic")

    def __call__(self, points: Tensor) -> Tensor:
        """See `Transform`."""
        at = self.lattice.voxels_of(points).mT
        moved = sample(self.vectors, at.to(self.vectors), interpolation="cubic", prefilter=False)
        return self.lattice.world_of((at + moved).mT)

    def inverse(self, on_failure: OnFailure = "raise") -> Displacement:
        """See `Displacement.inverse`: on the image's grid."""
        return self.displacement().inverse(on_failure)


@dataclass(frozen=True, eq=False)
class Velocity(Transform):
    """The flow of a stationary velocity for unit time, by scaling and squaring: see `exponential`, and `flow`.

    Args:
        vectors: `(B, D, *S)`, in voxels of the grid.
        grid: where they are.
        squarings: see `exponential`.
        interpolation: see `sample`.
    """

    vectors: Tensor
    grid: Grid
    squarings: int = 6
    interpolation: Interpolation = "linear"

    def displacement(self) -> Displacement:
        """What it comes to."""
        u = fields.exponential(self.vectors, self.squarings, interpolation=self.interpolation)
        return Displacement(u, self.grid, self.interpolation)

    def __call__(self, points: Tensor) -> Tensor:
        """See `Transform`."""
        return self.displacement()(points)

    def inverse(self, on_failure: OnFailure = "raise") -> Velocity:
        """The flow of the opposite velocity: the inverse but for interpolation, about 1e-2 voxels; see `flow`."""
        return Velocity(-self.vectors, self.grid, self.squarings, self.interpolation)


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Transforms one after another.

    Args:
        parts: the first one first.
    """

    parts: tuple[Transform, ...]

    def __call__(self, points: Tensor) -> Tensor:
        """See `Transform`."""
        for part in self.parts:
            points = part(points)
        return points

    def inverse(self, on_failure: OnFailure = "raise") -> Chain:
        """See `Transform`."""
        return Chain(tuple(part.inverse(on_failure) for part in reversed(self.parts)))

"""An image and where it lies: voxels together with their affine to millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

CODES = ("LR", "PA", "IS")  # of the three axes of the world: towards smaller and towards larger coordinates


@dataclass(frozen=True, eq=False)
class Image:
    r"""Voxels and their place: `world = affine @ (i, j, k, 1)` in millimetres, to the right, anterior, superior (RAS+).

    An array alone does not know which of its axes points where, nor how long a voxel is. DICOM and ITK count to the
    left and to the posterior (LPS): their x and y have the other sign.

    Args:
        data: `(X, Y, Z)`, or `(X, Y, Z, T)` with a last axis of times or channels; of any dtype, labels stay integers.
        affine: `(4, 4)`, kept in float64 on the CPU.

    Raises:
        ValueError: the affine is singular, not finite, or none; or the data is not of three or four dimensions.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import Image
        >>> affine = torch.diag(torch.tensor([-2.0, 2.0, 3.0, 1.0]))
        >>> image = Image(torch.zeros(4, 5, 1), affine)
        >>> image.orientation, image.spacing
        ('LAS', (2.0, 2.0, 3.0))
    """

    data: Tensor
    affine: Tensor

    def __post_init__(self) -> None:
        """Refuses what has no place."""
        if not isinstance(self.data, Tensor) or self.data.ndim not in (3, 4) or not self.data.numel():
            got = tuple(self.data.shape) if isinstance(self.data, Tensor) else type(self.data).__name__
            raise ValueError(
                f"Image(data): got {got}, expected a tensor (X, Y, Z) or (X, Y, Z, T); try data[:, :, None]"
            )
        affine = torch.as_tensor(self.affine, dtype=torch.float64, device="cpu")
        if affine.shape != (4, 4) or not affine.isfinite().all():
            raise ValueError(f"Image(affine): got {affine.tolist()}, expected 4 x 4 finite numbers")
        lengths = affine[:3, :3].norm(dim=0)
        straight = affine[:3, :3].det().abs() > 1e-6 * lengths.prod()
        if affine[3].tolist() != [0.0, 0.0, 0.0, 1.0] or not straight or not bool((lengths > 0).all()):
            raise ValueError(
                f"Image(affine): got {affine.tolist()}, expected three independent axes and a last row 0, 0, 0, 1; "
                "try torch.diag(torch.tensor([*spacing, 1.0])) where an orientation does not matter"
            )
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The edges of a voxel in millimetres."""
        x, y, z = self.affine[:3, :3].norm(dim=0).tolist()
        return x, y, z

    @property
    def orientation(self) -> str:
        """Where the axes of the array point, nearly: `RAS` for right, anterior, superior."""
        return "".join(CODES[axis][int(up)] for axis, up in _directions(self.affine))

    def world(self, voxels: Tensor) -> Tensor:
        """Millimetres `(..., 3)` of indices `(..., 3)`, in float64."""
        return voxels.double() @ self.affine[:3, :3].T.to(voxels.device) + self.affine[:3, 3].to(voxels.device)

    def voxels(self, world: Tensor) -> Tensor:
        """Indices `(..., 3)`, not rounded, of millimetres `(..., 3)`, in float64."""
        inverse = torch.linalg.inv(self.affine[:3, :3]).T.to(world.device)
        return (world.double() - self.affine[:3, 3].to(world.device)) @ inverse

    def reoriented(self, orientation: str = "RAS") -> Image:
        """The same voxels at the same places, with axes turned and flipped so that they point, nearly, as asked.

        Nothing is interpolated: an oblique image stays oblique.

        Args:
            orientation: three letters, one out of each of L and R, P and A, I and S.

        Raises:
            ValueError: these letters are no orientation.
        """
        places = [
            next(((axis, pair.index(letter)) for axis, pair in enumerate(CODES) if letter in pair), (-1, 0))
            for letter in orientation
        ]
        if sorted(axis for axis, _ in places) != [0, 1, 2]:
            raise ValueError(
                f"reoriented({orientation!r}): expected one letter each of L or R, P or A, I or S; try 'RAS'"
            )
        have = _directions(self.affine)
        order = [next(i for i, (axis, _) in enumerate(have) if axis == wanted) for wanted, _ in places]
        flipped = [new for new, old in enumerate(order) if have[old][1] != bool(places[new][1])]
        data = self.data.permute(*order, *range(3, self.data.ndim))
        change = torch.zeros(4, 4, dtype=torch.float64, device="cpu")
        change[3, 3] = 1
        for new, old in enumerate(order):
            change[old, new] = -1.0 if new in flipped else 1.0
            change[old, 3] = data.shape[new] - 1 if new in flipped else 0
        return Image(data.flip(flipped).contiguous(), self.affine @ change)


def _directions(affine: Tensor) -> list[tuple[int, bool]]:
    """For every axis of the array, the axis of the world that it is nearest to, and whether it goes upwards there.

    The three together: each axis of the world is taken once, however oblique the image.
    """
    unit = affine[:3, :3] / affine[:3, :3].norm(dim=0)
    best = max(permutations(range(3)), key=lambda axes: sum(abs(float(unit[axis, i])) for i, axis in enumerate(axes)))
    return [(axis, float(unit[axis, i]) > 0) for i, axis in enumerate(best)]

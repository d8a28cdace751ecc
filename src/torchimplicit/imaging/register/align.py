"""The public function of registration, and its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from torchimplicit.adjoint import Adjoint
from torchimplicit.core import transforms
from torchimplicit.core.options import check_on_failure
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure, Report
from torchimplicit.imaging.image import Image
from torchimplicit.imaging.register import warp as warps
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.kind import Call, Kind
from torchimplicit.imaging.register.linear import Affine
from torchimplicit.imaging.register.pair import Pair
from torchimplicit.imaging.register.sample import Interpolation, Padding, sample
from torchimplicit.imaging.register.start import started
from torchimplicit.imaging.register.transform import Chain, Displacement, Linear, Transform

Start = Literal["world", "centers"]
Pictured = TypeVar("Pictured", Image, Tensor)


@dataclass(frozen=True, eq=False)
class Registration:
    """What `align` has found.

    Attributes:
        transform: from the fixed world to the moving one.
        fixed: the grid of the fixed image, as it was given.
        moving: that of the moving one.
        report: how the solve went, sample by sample; of the last stage.
        stages: reports of all stages.
    """

    transform: Transform
    fixed: Grid
    moving: Grid
    report: Report
    stages: tuple[Report, ...] = field(default=(), repr=False)

    def warp(
        self, image: Pictured, *, interpolation: Interpolation = "linear", padding: Padding = "border"
    ) -> Pictured:
        """An image on the moving grid as it looks on the fixed one.

        Args:
            image: `(B, C, *moving.size)`, or an `Image` with the place and size of the moving one.
            interpolation: see `sample`.
            padding: see `sample`.

        Returns:
            `(B, C, *fixed.size)`, or an `Image`.

        Raises:
            ValueError: an image of another grid.
        """
        if isinstance(image, Image):
            data = image.data[None, None] if image.data.ndim == 3 else image.data.movedim(3, 0)[None]
            floats = data if data.is_floating_point() or interpolation == "nearest" else data.float()
            found = self._warped(Grid.of(image), floats, interpolation, padding)[0]
            return Image(found[0] if image.data.ndim == 3 else found.movedim(0, 3), self.fixed.affine)
        return self._warped(self.moving, image, interpolation, padding)

    def warp_labels(self, labels: Pictured, *, by: str = "nearest") -> Pictured:
        """Labels on the moving grid as they lie on the fixed one, by one of two conventions: see `warp_labels`.

        Raises:
            TypeError: the labels are no integers.
            ValueError: labels of another grid, or no convention.
        """
        if isinstance(labels, Image):
            self._check_grid("warp_labels", Grid.of(labels))
            return Image(self.warp_labels(labels.data[None, None], by=by)[0, 0], self.fixed.affine)
        warps.check_labels("warp_labels", labels)
        self._check_size("warp_labels", labels, self.moving.size)
        at = self.positions(torch.zeros((), dtype=torch.float32, device=labels.device))
        return warps.labels_at(labels, at, by)

    def positions(self, like: Tensor) -> Tensor:
        """Where the moving image has the fixed grid's voxels: indices `(B, D, *fixed.size)`."""
        points = self.transform(self.fixed.points(like)[None].expand(len(self.report.status), -1, -1))
        return self.moving.voxels_of(points).mT.unflatten(2, self.fixed.size)

    def displacement(self) -> Tensor:
        """Where the fixed grid's voxels go, less where they are: `(B, D, *fixed.size)`, in millimetres, float64."""
        points = self.fixed.points(torch.zeros((), dtype=torch.float64, device=self.report.status.device))
        points = points[None].expand(len(self.report.status), -1, -1)
        return (self.transform(points) - points).mT.unflatten(2, self.fixed.size)

    def det_jacobian(self) -> Tensor:
        """The volume that every voxel of the fixed grid becomes, `(B, *fixed.size)`: see `det_jacobian`."""
        return warps.det_jacobian(self._in_voxels())

    def folds(self, border: int = 0) -> Tensor:
        """How many voxels of the fixed grid are turned over, `(B,)`: see `folds`."""
        return warps.folds(self._in_voxels(), border=border)

    def inverse(self, on_failure: OnFailure = "raise") -> Registration:
        """The registration of the fixed image on the moving one that leads back.

        Args:
            on_failure: where there is no inverse: "raise", "warn" or "ignore".

        Raises:
            ConvergenceError: some displacement folds, or its inverse was not found.
        """
        back = self.transform.inverse(on_failure)
        parts = back.parts if isinstance(back, Chain) else (back,)
        found = tuple(part.report for part in parts if isinstance(part, Displacement) and part.report is not None)
        return Registration(back, self.moving, self.fixed, found[-1] if found else self.report, found)

    def _in_voxels(self) -> Tensor:
        way = torch.linalg.inv(self.fixed.affine)[:-1, :-1]
        u = self.displacement()
        return torch.einsum("ij,bj...->bi...", way.to(u), u)

    def _check_grid(self, name: str, grid: Grid) -> None:
        if grid.size != self.moving.size or not torch.allclose(grid.affine, self.moving.affine, atol=1e-3):
            raise ValueError(f"{name}: got an image on {grid}, expected one on the moving grid, {self.moving}")

    @staticmethod
    def _check_size(name: str, image: Tensor, size: Sequence[int]) -> None:
        if tuple(image.shape[2:]) != tuple(size):
            raise ValueError(f"{name}: got {tuple(image.shape)}, expected (B, C, {', '.join(map(str, size))})")

    def _warped(self, grid: Grid, image: Tensor, interpolation: Interpolation, padding: Padding) -> Tensor:
        self._check_grid("warp", grid)
        self._check_size("warp", image, grid.size)
        like = image if image.is_floating_point() else torch.zeros(())
        return sample(image, self.positions(like), interpolation=interpolation, padding=padding)


@public
@transforms.outside_inference_mode
def align(
    fixed: Image | Tensor,
    moving: Image | Tensor,
    kind: Kind | Sequence[Kind] = Affine(),
    *,
    initial: Start | Transform | Registration | Tensor = "world",
    fixed_mask: Image | Tensor | None = None,
    moving_mask: Image | Tensor | None = None,
    spacing: Sequence[float] | None = None,
    moving_spacing: Sequence[float] | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> Registration:
    """Finds where a moving image has what the fixed one shows; samples, pairs of images, are independent.

    In millimetres: images bring their place, and for tensors the first voxel's centre is the origin. Values are
    normalised to mean 0 and variance 1 beforehand, whatever the scale of either image.

    A pair of which nothing can be told has a status and words for it (`Status.NON_FINITE`: values that are not;
    `Status.INFEASIBLE`: a constant image, or two that do not overlap), and disturbs no other.

    What masks hide does not count: it is not compared, and neither smoothing nor splines nor windows see its values.
    Nor does then what lies beyond the moving image, whose border without a mask goes on for ever: try
    `moving_mask=torch.ones_like(moving[:, :1])` where much lies beyond. Weights fall smoothly.

    The result is an implicit function of the images: differentiable through the last level of every stage, by the
    condition that it satisfies there. A gradient wants tighter tolerances than a value: see `Affine`, `Demons`.

    Args:
        fixed: `Image`, or `(B, C, *S)`, floating, of two or three dimensions.
        moving: the same; its grid may be another.
        kind: what transform to look for, and how: `Rigid()`, `Similarity()`, `Affine()`, `Demons()`, `BSpline()`,
            `Variational()`; or several, one after another, linear ones first.
        initial: where to start: "world" where the affines say, "centers" with the middles of the two grids on each
            other; or a transform, or an earlier result; or a displacement `(B, D, *S)` in voxels of the fixed image,
            such as a network's guess. A deformation goes on from the last linear map in it, which stays as it is and
            may have a gradient, and begins at the field before that: a start alone, which gets no gradient.
        fixed_mask: 1 where the fixed image counts, 0 where it does not (a lesion, an artefact, what is no brain), or a
            part: bool or numbers, an `Image` on its grid, or `(B, 1, *S)` or `(1, 1, *S)`; None is all of it. No
            gradient goes there.
        moving_mask: of the moving image, the same. Where either does, both hide.
        spacing: edges of a voxel along the axes of tensors; None is 1.
        moving_spacing: of the moving image's; None is as `spacing`.
        adjoint: how to differentiate the solves; see `least_squares`, `fixed_point`.
        on_failure: "raise", "warn" or "ignore" samples that do not converge, forward and backward.
        progress: called when work on a level of a stage begins, with its number, from 0, and how many levels there are.

    Returns:
        The `Registration`.

    Raises:
        ConvergenceError: some sample did not converge, or nothing can be told of it; carries the registration.
        NotImplementedError: images that `torch.vmap` maps.
        TypeError: something is no image, or no kind.
        ValueError: images that do not go together.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import register
        >>> x = torch.linspace(-3, 3, 48)
        >>> blob = lambda cx, cy: torch.exp(-((x[:, None] - cx) ** 2) - 3 * (x - cy) ** 2)[
        ...     None, None
        ... ]
        >>> result = register.align(
        ...     blob(0, 0), blob(0.5, -0.25), register.Rigid(levels=((1, 1),))
        ... )
        >>> (result.displacement()[0, :, 24, 24] * 6 / 47).round(decimals=2)
        tensor([ 0.5000, -0.2500], dtype=torch.float64)
    """
    kinds: list[Any] = list(kind) if isinstance(kind, list | tuple) else [kind]
    if not kinds or not all(isinstance(each, Kind) for each in kinds):
        raise TypeError(
            f"align(kind={kind!r}): expected Rigid(), Affine(), Demons() or another kind, or a list of such"
        )
    deforms = [not isinstance(each, Affine) for each in kinds]
    if deforms != sorted(deforms):
        raise ValueError(f"align(kind={kind!r}): expected deformations after all linear stages")
    check_on_failure(on_failure)
    data = [each.data if isinstance(each, Image) else each for each in (fixed, moving)]
    if any(isinstance(each, Tensor) and transforms.hides_batch(each) for each in data):
        raise NotImplementedError("align does not work under torch.vmap; try one batch of pairs, in dimension 0")
    pair = Pair.of(fixed, moving, spacing, moving_spacing, (fixed_mask, moving_mask))
    grids = Grid.of(fixed, spacing), Grid.of(moving, moving_spacing or spacing)
    initial = initial.transform if isinstance(initial, Registration) else initial
    transform, reports = started(initial, pair, grids[0]), []
    if not deforms[0] and not isinstance(transform, Linear):
        raise ValueError(
            f"align(kind={kinds[0]!r}): expected a linear transform to start from, or a deformation to find"
        )
    for each in kinds:
        present = partial(_present, *grids, tuple(reports))
        result = each.find(pair, transform, Call(adjoint, on_failure, present, progress or _in_silence))
        transform, reports = result.transform, [*reports, result.report]
    return result


def _present(fixed: Grid, moving: Grid, stages: tuple[Report, ...], found: Transform, report: Report) -> Registration:
    return Registration(found, fixed, moving, report, (*stages, report))


def _in_silence(level: int, levels: int) -> None:
    pass

"""Rigid, similarity and affine registration: least squares in the Lie algebra, from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number, require, require_instance
from torchimplicit.core.problem import Residual
from torchimplicit.core.stationary import LeastSquares, Stationary
from torchimplicit.core.status import Solution
from torchimplicit.equations import solve_problem
from torchimplicit.imaging.register.axes import gaussian
from torchimplicit.imaging.register.grid import LEAST
from torchimplicit.imaging.register.kind import Call, Kind
from torchimplicit.imaging.register.mutual import MutualInformation
from torchimplicit.imaging.register.pair import Pair, mark
from torchimplicit.imaging.register.sample import Interpolation, sample, spline_coefficients
from torchimplicit.imaging.register.similarity import NCC, SSD
from torchimplicit.imaging.register.transform import Linear
from torchimplicit.imaging.register.warp import identity
from torchimplicit.imaging.register.weights import framed, looked, mean_one
from torchimplicit.point import Options
from torchimplicit.solve import LBFGS, LevenbergMarquardt, Result, Solver

COARSE = LevenbergMarquardt(rtol=1e-2, atol=0.1, max_steps=30)  # in voxels that the image's outer parts move by
# Of the last level, for values and for gradients; and where a similarity is no sum of squares.
SOLVERS = (
    LevenbergMarquardt(rtol=1e-3, atol=0.01, max_steps=100),
    LevenbergMarquardt(rtol=1e-5, atol=1e-5, max_steps=200),
)
DESCENT = LBFGS(rtol=1e-2, atol=0.1, max_steps=50)
DESCENTS = LBFGS(rtol=1e-3, atol=0.01, max_steps=200), LBFGS(rtol=1e-6, atol=1e-6, max_steps=500)
KNOWN = (NCC, SSD, MutualInformation)
MOST = 2**17  # places of the fixed image that are compared


@dataclass(frozen=True)
class Affine(Kind):
    r"""An affine registration: $x \mapsto c + e^G (x - c, 1)$ with any $G$ of the Lie algebra, about the middle.

    Least squares of a similarity's residuals, from coarse to fine: both images are smoothed by a Gaussian, and compared
    on every so many voxels of the fixed one. The unknowns are of one size, a voxel of movement in the outer parts. A
    sample has converged when the Newton step from it is no longer than the solver's tolerances, in such voxels. A level
    starts where the coarser one has come to, if that is better by its own measure than where that began.

    Where a gradient by an image is wanted, the last level interpolates by cubic splines: linear interpolation has no
    second derivatives, which the gradient is made of. `MutualInformation` is no sum of squares: `LBFGS` goes down from
    where it starts, in more time, and finds images of different kinds (CT on MR), whose values are no linear functions
    of each other. Smoothing is that of one image on the other only where they are of
    one scale: where the scale itself matters, let the last level smooth little, `(0.0, 1.0)`.

    Args:
        similarity: `NCC()`, or `SSD()`; or `MutualInformation()` for images of different kinds.
        levels: pairs of the smoothing's standard deviation and the stride, from coarse to fine, in units of the fixed
            image's mean voxel edge; all made smaller by one factor where the largest of these lengths would be more
            than a twelfth of either image's shortest side.
        solver: of the last level; None goes to a hundredth of a voxel, and far closer where a gradient is wanted.
        interpolation: of the last level: "linear" or "cubic", which takes eight times the time in three dimensions;
            None takes linear, and cubic where a gradient is wanted.
    """

    similarity: NCC | SSD | MutualInformation = NCC()
    levels: tuple[tuple[float, float], ...] = ((4.0, 4.0), (2.0, 2.0))
    solver: Solver | None = None
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        fine = isinstance(self.levels, tuple) and self.levels and all(map(_is_level, self.levels))
        require(self, "levels", bool(fine), "pairs (smoothing >= 0, stride > 0), from coarse to fine")
        object.__setattr__(self, "levels", tuple(map(tuple, self.levels)))  # files have lists
        require(self, "similarity", isinstance(self.similarity, KNOWN), "NCC(), SSD() or MutualInformation()")
        require(self, "interpolation", self.interpolation in (None, "linear", "cubic"), "'linear', 'cubic' or None")
        if self.solver is not None:
            require_instance(f"{type(self).__name__}(solver)", self.solver, Solver, "LevenbergMarquardt()")

    def generators(self, space: int, reach: float) -> Tensor:
        """A basis of the Lie algebra, `(n, D + 1, D + 1)`, that moves what is `reach` from the middle by one voxel."""
        axes = range(space)
        return torch.stack([_unit(space, (i, j, 1 / reach)) for i in axes for j in axes] + _translations(space))

    def find(self, pair: Pair, initial: Linear, call: Call) -> Any:
        """See `Kind.find`."""
        frame = _Frame.of(pair, initial)
        basis = self.generators(pair.fixed_grid.space, frame.reach).to(pair.fixed)
        faults = pair.apart(initial.matrix) | pair.faults

        def transform(z: Tensor) -> Linear:
            moved = frame.unit @ _exponential(z, basis).to(frame.unit) @ torch.linalg.inv(frame.unit)
            return Linear(initial.matrix @ moved)

        def review(residual: Residual, result: Result) -> None:
            left = {} if transforms.active() else pair.apart(transform(result.z.detach()).matrix)
            mark(result.report, left | faults)

        def show(solution: Solution) -> Any:
            return call.present(transform(solution.value), solution.report)

        z, (*coarse, last) = pair.fixed.new_zeros(len(pair.fixed), len(basis)), self._levels(pair)
        for number, level in enumerate(coarse):
            call.progress(number, len(self.levels))
            with torch.no_grad():
                terms, args = self._terms(basis, frame, pair, level, "linear")
                z = self._better(terms, z, args)
                options = Options(COARSE if self._squares else DESCENT, None, None, "ignore")
                z = solve_problem(self._form(terms, z, args, 1, (0, 1, 2, 3)), z, options).value
        call.progress(len(coarse), len(self.levels))
        wanted = transforms.differentiating((pair.fixed, pair.moving, initial.matrix))
        terms, args = self._terms(basis, frame, pair, last, self.interpolation or ("cubic" if wanted else "linear"))
        z = self._better(terms, z, args)
        solver = self.solver or self.usual(wanted)
        options = Options(solver, call.adjoint, None, call.on_failure, review=review, present=show)
        return solve_problem(self._form(terms, z, args, 1, (0, 1, 2, 3)), z, options)

    def usual(self, gradient: bool = False) -> Solver:
        """See `Kind.usual`."""
        return (SOLVERS if self._squares else DESCENTS)[gradient]

    @property
    def _squares(self) -> bool:
        """Whether the similarity is a sum of squares."""
        return hasattr(self.similarity, "residuals")

    @property
    def _form(self) -> type[Stationary]:
        return LeastSquares if self._squares else Stationary

    @torch.no_grad()
    def _better(self, terms: Callable[..., Tensor], z: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        """Where a coarser level has come to, or the start for samples in which that is better at this one."""
        found, start = (terms(each, *args) for each in (z, torch.zeros_like(z)))
        if self._squares:
            found, start = (each.square().sum(1) for each in (found, start))
        return torch.where((found <= start).unsqueeze(1), z, 0.0)

    def _levels(self, pair: Pair) -> list[tuple[float, float]]:
        """The levels, finer where the coarsest would leave nothing of small images but a blob, which fits anywhere."""
        grids = pair.fixed_grid, pair.moving_grid
        side = min(n * edge for grid in grids for n, edge in zip(grid.size, grid.spacing, strict=True))
        most = max(max(level) for level in self.levels)
        scale = min(1.0, side / pair.fixed_grid.edge / LEAST / most)
        return [(scale * smoothing, max(1.0, scale * stride)) for smoothing, stride in self.levels]

    def _terms(
        self, basis: Tensor, frame: _Frame, pair: Pair, level: tuple[float, float], interpolation: Interpolation
    ) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """The residuals at one level, as a function of the unknowns and of further arguments, and those."""
        smoothing, stride = level
        size, grid = pair.fixed_grid.size, pair.fixed_grid
        stride = max(stride, (torch.Size(size).numel() / MOST) ** (1 / grid.space))
        steps = [max(1, min(round(each), n // 4)) for each, n in zip(grid.voxels(stride), size, strict=True)]
        cut = [slice((n - 1) % step // 2, None, step) for n, step in zip(size, steps, strict=True)]
        fixed, moving = self.similarity.prepared(pair.fixed, pair.moving)
        fixed = gaussian(fixed, grid.voxels(smoothing))[(..., *cut)].flatten(2)
        moving = gaussian(moving, [smoothing * grid.edge / edge for edge in pair.moving_grid.spacing])
        moving = spline_coefficients(moving) if interpolation == "cubic" else moving
        widths = [max(1, round(stride * grid.edge / edge)) for edge in pair.moving_grid.spacing]
        leave, masked = frame.leave.to(fixed), pair.fixed_mask is not None or pair.moving_mask is not None
        if masked:
            moving, leave = framed(moving, pair.moving_mask, leave, interpolation, widths)
        mask = fixed.new_ones(len(fixed), 1, 1) if pair.fixed_mask is None else pair.fixed_mask[(..., *cut)].flatten(2)
        x = frame.places(identity(size, frame.unit)[(slice(None), *cut)].flatten(1)).to(fixed)
        compared = getattr(self.similarity, "residuals", None) or partial(_lost, self.similarity)
        terms = partial(_compared, compared, interpolation, masked)
        return terms, (fixed, moving, leave, mean_one(mask), x, basis)


@dataclass(frozen=True)
class Similarity(Affine):
    """Turned, shifted, and larger or smaller the same in all directions; see `Affine`."""

    def generators(self, space: int, reach: float) -> Tensor:
        """See `Affine.generators`."""
        growth = _unit(space, *((i, i, 1 / reach) for i in range(space)))
        return torch.stack([*_rotations(space, reach), growth, *_translations(space)])


@dataclass(frozen=True)
class Rigid(Affine):
    """Turned and shifted: the same head at another time; see `Affine`."""

    def generators(self, space: int, reach: float) -> Tensor:
        """See `Affine.generators`."""
        return torch.stack([*_rotations(space, reach), *_translations(space)])


class _Frame(NamedTuple):
    """The coordinates that the unknowns are in: voxels of mean edge, about the middle of the fixed image.

    Attributes:
        unit: from these to the fixed world, `(D + 1, D + 1)`.
        enter: from voxels of the fixed grid to these, the same.
        leave: from these by the initial transform to voxels of the moving grid, `(B, D + 1, D + 1)`.
        reach: the RMS distance of the fixed image's voxels from its middle.
    """

    unit: Tensor
    enter: Tensor
    leave: Tensor
    reach: float

    @classmethod
    def of(cls, pair: Pair, initial: Linear) -> _Frame:
        grid = pair.fixed_grid
        unit = torch.eye(grid.space + 1, dtype=torch.float64, device="cpu")
        unit[:-1, :-1] *= grid.edge
        unit[:-1, -1] = grid.center
        enter = torch.linalg.inv(unit) @ grid.affine
        leave = torch.linalg.inv(pair.moving_grid.affine) @ initial.matrix @ unit
        lengths = [n * edge / grid.edge for n, edge in zip(grid.size, grid.spacing, strict=True)]
        return cls(unit, enter, leave, math.sqrt(sum(length**2 for length in lengths) / 12))

    def places(self, voxels: Tensor) -> Tensor:
        """Indices `(D, n)` in these coordinates."""
        return self.enter[:-1, :-1] @ voxels + self.enter[:-1, -1:]


def _compared(
    compared: Callable[..., Tensor],
    interpolation: Interpolation,
    masked: bool,
    z: Tensor,
    fixed: Tensor,
    moving: Tensor,
    leave: Tensor,
    mask: Tensor,
    x: Tensor,
    basis: Tensor,
) -> Tensor:
    """What a similarity says of the images at places `x` `(D, n)` of the fixed one: residuals `(B, m)`, or `(B,)`."""
    M = leave @ _exponential(z, basis)
    at = M[:, :-1, :-1] @ x + M[:, :-1, -1:]
    if not masked:  # weights by overlap alone take twice the time, and were worth nothing on pairs of one organ
        return compared(fixed, sample(moving, at, interpolation=interpolation, prefilter=False))
    return compared(fixed, *looked(moving, at, mask, interpolation))


def _lost(similarity: Any, fixed: Tensor, warped: Tensor, weights: Tensor | None = None) -> Tensor:
    return similarity.loss(fixed, warped, None, weights)


def _exponential(z: Tensor, basis: Tensor) -> Tensor:
    return torch.linalg.matrix_exp(torch.einsum("bn,nij->bij", z, basis))


def _unit(space: int, *entries: tuple[int, int, float]) -> Tensor:
    matrix = torch.zeros(space + 1, space + 1, dtype=torch.float64, device="cpu")
    for i, j, value in entries:
        matrix[i, j] = value
    return matrix


def _translations(space: int) -> list[Tensor]:
    return [_unit(space, (i, space, 1.0)) for i in range(space)]


def _rotations(space: int, reach: float) -> list[Tensor]:
    pairs = [(i, j) for i in range(space) for j in range(i + 1, space)]
    return [_unit(space, (i, j, 1 / reach), (j, i, -1 / reach)) for i, j in pairs]


def _is_level(level: Any) -> bool:
    if not isinstance(level, tuple | list) or len(level) != 2 or not all(map(is_number, level)):
        return False
    return 0 <= level[0] < math.inf and 0 < level[1] < math.inf

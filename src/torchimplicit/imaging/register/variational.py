"""Nonrigid registration as a minimum: how unlike two images are, and a penalty of what is not smooth."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import Implicit
from torchimplicit.core import transforms
from torchimplicit.core.options import is_count, is_number, require, require_instance
from torchimplicit.core.problem import Residual
from torchimplicit.core.stationary import Stationary
from torchimplicit.core.status import Solution
from torchimplicit.equations import solve_problem
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.kind import Call, Kind
from torchimplicit.imaging.register.lattice import Lattice, Penalty
from torchimplicit.imaging.register.mutual import MutualInformation
from torchimplicit.imaging.register.pair import Pair, mark
from torchimplicit.imaging.register.sample import Interpolation
from torchimplicit.imaging.register.scene import Scene, seen
from torchimplicit.imaging.register.similarity import LNCC, NCC, SSD
from torchimplicit.imaging.register.start import carried, field_part, linear_part
from torchimplicit.imaging.register.transform import Displacement, FreeForm, Transform
from torchimplicit.imaging.register.warp import difference
from torchimplicit.imaging.register.weights import mean_one
from torchimplicit.linear import CG
from torchimplicit.optim.smooth.second_order import check_minimum
from torchimplicit.point import Options
from torchimplicit.solve import LBFGS, NewtonCG, Result, Solver

COARSE = LBFGS(rtol=0.1, atol=0.1, max_steps=30)  # in mean voxel edges
VALUE = LBFGS(rtol=0.02, atol=0.02, max_steps=200)
GRADIENT = NewtonCG(rtol=1e-6, atol=1e-6, max_steps=200)
BACKWARD = Implicit(CG(rtol=1e-6, max_steps=500))

PART = 0.1  # of the images' mean squared gradient, beside the penalty, in the units of unknowns


@dataclass(frozen=True)
class Variational(Kind):
    r"""A free displacement: the minimum of $D(f, m \circ (x + u)) + \lambda P(u)$, differentiably in images and weight.

    $P$ is the mean over voxels of $\tfrac12 |\nabla u|^2$ ("diffusion") or of the bending energy $\tfrac12 \sum_{ij}
    |\partial_i \partial_j u|^2$ ("bending"), mirrored at the border. The unknowns are cosine coefficients of $u$, in
    units of $(\lambda P'' / c + 1)^{-1/2}$, with a part $c$ of the mean squared gradient of the fixed image. This
    preconditions the descent, the test whether it has arrived, and the solves for gradients of any order alike, and
    changes no minimum. Their RMS is no less than that of $u$ in mean voxel edges, which a solver's tolerances are in;
    the residual is about as long as the Newton step that is left.

    An energy has what an equilibrium of forces lacks: a minimum that is looked at, a Hessian that is symmetric, a
    weight with a meaning. A step costs a derivative of a spline instead. No displacement is kept from folding: look at
    `Registration.folds`, and take a larger weight, or `Demons()`.

    Source: J. Modersitzki, Numerical Methods for Image Registration (2004), sections 8 to 11.

    Args:
        similarity: `NCC()`, `LNCC()`, `SSD()` for the same values of the same matter, or `MutualInformation()`.
        penalty: "bending" or "diffusion"; lengths are in the fixed image's mean voxel edges.
        weight: $\lambda > 0$: less is more overlap, and folds; a tensor gets a gradient, also the second.
        levels: by which powers of two images are made smaller, from coarse to fine; None takes (4, 2, 1), and (4, 2) of
            volumes, at full resolution ten times the time: Dice of hippocampi was 0.714 without it, 0.735 with it.
        solver: of the last level, any of `argmin`; None is as good as is wanted, far closer for gradients.
        interpolation: "cubic"; "linear" has kinks, at which there is no minimum to be found: values alone, and a
            warning.
    """

    similarity: SSD | NCC | LNCC | MutualInformation = NCC()
    penalty: Penalty = "bending"
    weight: float | Tensor = 3.0
    levels: tuple[int, ...] | None = None
    solver: Solver | None = None
    interpolation: Interpolation = "cubic"

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        name, fine = type(self).__name__, isinstance(self.levels, tuple) and bool(self.levels)
        require(self, "similarity", hasattr(self.similarity, "loss"), "SSD(), NCC(), LNCC() or MutualInformation()")
        require(self, "penalty", self.penalty in ("diffusion", "bending"), "'diffusion' or 'bending'")
        fine = self.levels is None or (fine and all(is_count(n) and n & (n - 1) == 0 for n in self.levels or ()))
        require(self, "levels", fine, "powers of two, coarse to fine, such as (4, 2, 1)")
        single = isinstance(self.weight, Tensor) and self.weight.numel() == 1
        positive = bool(single or (is_number(self.weight) and 0 < self.weight < math.inf))
        require(self, "weight", positive, "one number > 0")
        require(self, "interpolation", self.interpolation in ("linear", "cubic"), "'cubic', or 'linear' with kinks")
        if self.solver is not None:
            require_instance(f"{name}(solver)", self.solver, Solver, "NewtonCG()")
        if self.interpolation == "linear":
            warnings.warn(
                f"{name}(interpolation='linear'): an energy with kinks at voxels has no minimum that can be found to "
                "many digits, and none of its gradients: take 'cubic', or Demons() where there is no time",
                stacklevel=4,
            )

    def find(self, pair: Pair, initial: Transform, call: Call) -> Any:
        """See `Kind.find`."""
        base, grid = linear_part(initial, len(pair.fixed), pair.fixed_grid.space), pair.fixed_grid
        u = field_part(initial, grid, pair.fixed, Displacement)
        faults = pair.apart(base.matrix) | pair.faults
        weight = torch.as_tensor(self.weight, dtype=pair.fixed.dtype, device=pair.fixed.device).reshape(())
        wanted = transforms.differentiating((pair.fixed, pair.moving, base.matrix, weight))
        fixed, moving = self.similarity.prepared(pair.fixed, pair.moving)
        pair = replace(pair, fixed=fixed, moving=moving)
        *coarse, last = self.levels or ((4, 2, 1) if grid.space == 2 else (4, 2))
        for number, shrink in enumerate(coarse):
            call.progress(number, len(coarse) + 1)
            with torch.no_grad():
                scene = Scene.of(pair, base, shrink, self.interpolation)
                problem, view, w = self._problem(scene, weight, u, grid)
                w = solve_problem(problem, w, Options(COARSE, BACKWARD, None, "ignore")).value
                u, grid = view.displacement(w), scene.grid
        call.progress(len(coarse), len(coarse) + 1)
        scene = Scene.of(pair, base, last, self.interpolation)
        problem, view, w = self._problem(scene, weight, u, grid)

        def review(residual: Residual, result: Result) -> None:
            check_minimum(residual, result)
            mark(result.report, faults)

        def show(solution: Solution) -> Any:
            return call.present(view.transform(solution.value, scene.grid).then(base), solution.report)

        solver = self.solver or self.usual(wanted)
        options = Options(solver, call.adjoint or BACKWARD, None, call.on_failure, review=review, present=show)
        return solve_problem(problem, w, options)

    def _problem(self, scene: Scene, weight: Tensor, u: Tensor | None, grid: Grid) -> tuple[Stationary, _View, Tensor]:
        """The condition at one level, how to see its unknowns, and where to start from a displacement."""
        view = self.view(scene, weight)
        with torch.no_grad():
            w = scene.fixed.new_zeros(len(scene.fixed), scene.grid.space, *view.lattice.shape)
            if u is not None:
                start = view.unknowns(carried(u, grid, scene.grid))
                loss, nothing = (self._loss(scene, view.displacement(each)) for each in (start, w))
                w = torch.where((loss < nothing).view(-1, *[1] * (w.ndim - 1)), start, w)
        energy = partial(_energy, self.similarity, scene.units, scene.interpolation, view.lattice)
        args = (
            scene.fixed,
            scene.moving,
            scene.leave,
            None if scene.mask is None else mean_one(scene.mask),
            view.scale,
            view.stretch,
            scene.x,
            weight,
        )
        return Stationary(energy, w, args, 1, (0, 1, 2, 3, 4, 5)), view, w

    def usual(self, gradient: bool = False) -> Solver:
        """See `Kind.usual`."""
        return GRADIENT if gradient else VALUE

    def _loss(self, scene: Scene, u: Tensor) -> Tensor:
        mask = None if scene.mask is None else mean_one(scene.mask)
        warped, weights = scene._replace(mask=mask).warped(u)
        return self.similarity.loss(scene.fixed, warped, scene.units, weights)

    def view(self, scene: Scene, weight: Tensor) -> _View:
        """The coordinates of a level's displacements."""
        lattice = Lattice.of_voxels(scene.grid.size, scene.units, self.penalty, scene.fixed)
        return _View(lattice, *_scales(scene, lattice.weights, weight), scene.units, None)


@dataclass(frozen=True)
class BSpline(Variational):
    r"""A free-form deformation: cubic B-splines on a lattice of control points, smooth by their bending energy.

    As `Variational`, with as few unknowns as there are control points: what is finer than their distance cannot move.
    The lattice spans the image from border to border, mirrored there; every level has its own, of the same distance in
    its voxels. The penalty's integrals are exact. The answer is a `FreeForm`, known between voxels, too.

    Source: D. Rueckert and others, IEEE Trans. Medical Imaging 18 (1999) 712.

    Args:
        similarity: see `Variational`.
        penalty: see `Variational`.
        weight: see `Variational`.
        levels: see `Variational`.
        solver: see `Variational`.
        interpolation: of the moving image, see `Variational`.
        spacing: distance of control points, in voxels of mean edge of every level.
    """

    spacing: float = 4.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "spacing", is_number(self.spacing) and 1 <= self.spacing < math.inf, "a number of voxels >= 1")

    def view(self, scene: Scene, weight: Tensor) -> _View:
        """See `Variational.view`."""
        size, units = scene.grid.size, scene.units
        shape = [max(2, 1 + math.ceil((n - 1) * unit / self.spacing)) for n, unit in zip(size, units, strict=True)]
        steps = [(n - 1) / (m - 1) for n, m in zip(size, shape, strict=True)]
        edges = [step * unit for step, unit in zip(steps, units, strict=True)]
        lattice = Lattice.of_splines(size, shape, edges, self.penalty, scene.fixed)
        return _View(lattice, *_scales(scene, lattice.weights, weight), units, steps)


@dataclass(frozen=True, eq=False)
class _View:
    """Unknowns and displacements.

    Attributes:
        lattice: the waves.
        scale: what an unknown is times to be an amplitude, `(B, 1, *m)`, in mean edges.
        stretch: what energies are times so that the Hessian's size is one, `(B,)`: a residual is about as long as the
            Newton step.
        units: edges of a voxel, in mean edges.
        steps: distances of the control points of splines, in voxels; None where the waves are of voxels.
    """

    lattice: Lattice
    scale: Tensor
    stretch: Tensor
    units: list[float]
    steps: list[float] | None

    def displacement(self, w: Tensor) -> Tensor:
        """Of unknowns `(B, D, *m)`, `(B, D, *S)` in voxels."""
        return _in_voxels(self.lattice.values(self.scale * w), self.units)

    def unknowns(self, u: Tensor) -> Tensor:
        """Those whose displacement comes nearest."""
        return self.lattice.amplitudes(_in_voxels(u, [1 / unit for unit in self.units])) / self.scale

    def transform(self, w: Tensor, grid: Grid) -> Transform:
        """What the unknowns are as a transform."""
        if self.steps is None:
            return Displacement(self.displacement(w), grid, "cubic")
        vectors = self.lattice.coefficients(self.scale * w)
        points = _in_voxels(vectors, [unit * step for unit, step in zip(self.units, self.steps, strict=True)])
        change = torch.diag(torch.tensor([*self.steps, 1.0], dtype=torch.float64, device="cpu"))
        return FreeForm(points, Grid(self.lattice.shape, grid.affine @ change), grid)


def _energy(
    similarity: Any,
    units: list[float],
    interpolation: Interpolation,
    lattice: Lattice,
    w: Tensor,
    fixed: Tensor,
    moving: Tensor,
    leave: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    stretch: Tensor,
    x: Tensor,
    weight: Tensor,
) -> Tensor:
    """The energy of unknowns `(B, D, *m)`, `(B,)`."""
    amplitudes = scale * w
    u = _in_voxels(lattice.values(amplitudes), units)
    rough = (lattice.weights * amplitudes.square()).flatten(1).sum(1)
    warped, weights = seen(moving, leave, mask, x, u, interpolation)
    return stretch * (similarity.loss(fixed, warped, units, weights) + 0.5 * weight * rough)


def _in_voxels(vectors: Tensor, units: list[float]) -> Tensor:
    """Vectors `(B, D, ...)` in lengths as numbers of voxels."""
    return torch.stack([part / unit for part, unit in zip(vectors.unbind(1), units, strict=True)], 1)


def _scales(scene: Scene, weights: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes of one unknown, `(B, 1, *m)`, and what energies are times, `(B,)`; see `_View`.

    A choice of coordinates, which has no derivative: the RMS of unknowns is no less than that of the displacement.
    """
    with torch.no_grad():
        fixed, axes = scene.fixed.detach(), range(2, scene.fixed.ndim)
        slopes = [(difference(fixed, a) / unit).square() for a, unit in zip(axes, scene.units, strict=True)]
        bend = torch.stack(slopes, 1).flatten(1).mean(1).clamp_min(1e-6) * PART
        count = weights.numel()
        stiff = weight.detach() * weights / bend.view(-1, 1, *[1] * len(axes))
        return (count * (1 + stiff)).rsqrt(), count / bend

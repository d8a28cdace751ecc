"""Nonrigid registration as an equilibrium: a force of the images, and smoothing, in balance; from coarse to fine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchimplicit.adjoint import Implicit
from torchimplicit.core import transforms
from torchimplicit.core.options import is_count, is_number, require, require_count, require_instance
from torchimplicit.core.problem import FixedPoint, Residual
from torchimplicit.core.status import Solution, Status
from torchimplicit.equations import solve_problem
from torchimplicit.imaging.register.axes import gaussian
from torchimplicit.imaging.register.field import exponential
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.kind import Call, Kind
from torchimplicit.imaging.register.pair import Pair, mark
from torchimplicit.imaging.register.sample import Interpolation
from torchimplicit.imaging.register.scene import Scene, seen
from torchimplicit.imaging.register.similarity import LNCC, SSD
from torchimplicit.imaging.register.start import carried, field_part, linear_part
from torchimplicit.imaging.register.transform import Displacement, Transform, Velocity
from torchimplicit.imaging.register.warp import difference
from torchimplicit.linear import GMRES
from torchimplicit.point import Options
from torchimplicit.solve import Anderson, Result, Solver

COARSE = Anderson(window=5, rtol=3e-2, max_steps=25)
VALUE = Anderson(window=5, rtol=2e-2, max_steps=50)  # good for a field,
GRADIENT = Anderson(window=10, rtol=1e-5, max_steps=500)  # and for its derivative, which is off by all of itself there
SLACK = 0.05  # an equilibrium is no minimum: of a pair that lies well already it is a little less alike
BACKWARD = Implicit(GMRES(rtol=1e-4, restart=30, max_steps=300))


@dataclass(frozen=True)
class Demons(Kind):
    r"""A free deformation: the equilibrium $v = G_\sigma(v + \tau\, f(v))$ of a force of the images and smoothing.

    The force is the gradient of the similarity at the moving image as it is warped. Where $v$ no longer moves, it is
    balanced by what $G_\sigma$, a Gaussian, takes away: a stationary point of the similarity and of a quadratic form of
    $G_\sigma^{-1} - I$. What smooths the answer is therefore $\sigma$ and $\tau$, not when the steps end.

    "velocity": $v$ is a stationary velocity, exponentiated in every step by scaling and squaring; the field has no
    folds as long as no step of the squaring has, and an inverse. "displacement" is faster, and folds where the force
    is strong: look at `Registration.folds`.

    A value is good long before its gradient: at a relative step of 1e-2 a gradient is off by all of itself, at 1e-5 in
    float32 by a thousandth. So where a gradient by an image, a step or a smoothing is wanted, the last level goes on to
    1e-5, with cubic splines; linear interpolation has kinks, at which it would stop short of that.

    Parts of it may be learned, through the equilibrium: what the force compares (`features`), how it does
    (`similarity`, an `nn.Module` with the methods `prepared` and `force` of `LNCC`), and what smooths (`smoother`).
    Their parameters get gradients, as the step does, as far as it converges: bound the step, and look at the status of
    every sample.

    Source: J.-P. Thirion, Medical Image Analysis 2 (1998) 243; T. Vercauteren and others, NeuroImage 45 (2009) S61; the
    force of LNCC from B. Avants and others, Medical Image Analysis 12 (2008) 26, equation 6.

    Args:
        form: "velocity" or "displacement".
        similarity: `LNCC()`; or `SSD()` for images with the same values of the same matter; or one that is learned.
        levels: from coarse to fine, `(shrink, smoothing, step)`: by which power of two images are made smaller,
            $\sigma$ in voxels of that level's mean edge, and $\tau$. The last level's may be tensors, with gradients; a
            step also one a sample, `(B,)`, or one a voxel of its grid, `(B, 1, *S)`. A larger step deforms more, and
            beyond some ten does not converge.
        solver: of the last level; None is as good as is wanted, see above.
        interpolation: "linear" or "cubic"; None takes linear, and cubic where a gradient is wanted.
        squarings: of the velocity, in every step.
        features: `(B, C, *S) -> (B, F, *S)`, applied to both images of every level, once: channels to compare in the
            place of the values. None compares the values.
        smoother: `smoother(v, fixed)`, of the vectors `(B, D, *S)`, in voxels, that the Gaussian has smoothed, and the
            fixed image as it is compared; to as many vectors. It must leave the step a contraction. None is the
            Gaussian alone.
    """

    form: Literal["velocity", "displacement"] = "velocity"
    similarity: LNCC | SSD | nn.Module = LNCC()
    levels: tuple[tuple[int, float | Tensor, float | Tensor], ...] = ((2, 1.0, 1.0), (1, 1.1, 2.0))
    solver: Solver | None = None
    interpolation: Interpolation | None = None
    squarings: int = 4
    features: nn.Module | None = None
    smoother: nn.Module | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "form", self.form in ("velocity", "displacement"), "'velocity' or 'displacement'")
        require(self, "similarity", hasattr(self.similarity, "force"), "one with a force: LNCC() or SSD()")
        fine = isinstance(self.levels, tuple) and self.levels and all(map(_is_level, self.levels))
        require(self, "levels", bool(fine), "triples (shrink, a power of 2; smoothing > 0; step > 0), coarse to fine")
        object.__setattr__(self, "levels", tuple(map(tuple, self.levels)))  # files have lists
        require(self, "interpolation", self.interpolation in (None, "linear", "cubic"), "'linear', 'cubic' or None")
        require_count(self, "squarings", least=0)
        if self.solver is not None:
            require_instance("Demons(solver)", self.solver, Solver, "Anderson()")
        for name in ("features", "smoother"):
            if getattr(self, name) is not None:
                require_instance(f"Demons({name})", getattr(self, name), nn.Module, "an nn.Module")

    def find(self, pair: Pair, initial: Transform, call: Call) -> Any:
        """See `Kind.find`."""
        base = linear_part(initial, len(pair.fixed), pair.fixed_grid.space)
        grid, own = pair.fixed_grid, Velocity if self.form == "velocity" else Displacement
        v = field_part(initial, grid, pair.fixed, own)
        faults = pair.apart(base.matrix) | pair.faults
        numbers = [each for each in self.levels[-1] if isinstance(each, Tensor)]
        wanted = transforms.differentiating((pair.fixed, pair.moving, base.matrix, *numbers, *self._learned()))
        prepared: Any = self.similarity.prepared
        fixed, moving = prepared(pair.fixed, pair.moving)
        pair = replace(pair, fixed=fixed, moving=moving)
        for number, level in enumerate(self.levels[:-1]):
            call.progress(number, len(self.levels))
            with torch.no_grad():
                scene = Scene.of(pair, base, level[0], self.interpolation or "linear", self.features)
                v, grid = self._begin(scene, v, grid), scene.grid
                v = solve_problem(self._problem(v, scene, level), v, Options(COARSE, BACKWARD, None, "ignore")).value
        call.progress(len(self.levels) - 1, len(self.levels))
        interpolation: Interpolation = self.interpolation or ("cubic" if wanted else "linear")
        scene = Scene.of(pair, base, self.levels[-1][0], interpolation, self.features)
        v = self._begin(scene, v, grid)
        problem = self._problem(v, scene, self.levels[-1])

        def review(residual: Residual, result: Result) -> None:
            mark(result.report, self._worse(scene, problem.layout.unflatten(result.z.detach())) | faults)

        def show(solution: Solution) -> Any:
            if self.form == "velocity":
                part = Velocity(solution.value, scene.grid, self.squarings, interpolation)
            else:
                part = Displacement(solution.value, scene.grid, interpolation)
            return call.present(part.then(base), solution.report)

        solver = self.solver or self.usual(wanted)
        options = Options(solver, call.adjoint or BACKWARD, None, call.on_failure, review=review, present=show)
        return solve_problem(problem, v, options)

    def usual(self, gradient: bool = False) -> Solver:
        """See `Kind.usual`."""
        return GRADIENT if gradient else VALUE

    def _loss(self, scene: Scene, v: Tensor) -> Tensor | None:
        """How unlike the images are, `(B,)`; None where a similarity that is learned is a force alone."""
        loss: Any = getattr(self.similarity, "loss", None)
        if loss is None:
            return None
        u = exponential(v, self.squarings, interpolation=scene.interpolation) if self.form == "velocity" else v
        warped, weights = scene.warped(u)
        return loss(scene.fixed, warped, scene.units, weights)

    @torch.no_grad()
    def _begin(self, scene: Scene, v: Tensor | None, grid: Grid) -> Tensor:
        """Where a level starts: from the coarser one, or from nothing in samples in which that is worse."""
        nothing = scene.fixed.new_zeros(len(scene.fixed), scene.grid.space, *scene.grid.size)
        if v is None:
            return nothing
        v = carried(v, grid, scene.grid)
        found, first = self._loss(scene, v), self._loss(scene, nothing)
        if found is None or first is None:
            return v
        return torch.where((found > first).view(-1, *[1] * (v.ndim - 1)), nothing, v)

    @torch.no_grad()
    def _worse(self, scene: Scene, v: Tensor) -> dict[int, tuple[Status, str]]:
        """The samples that are less alike at the answer than where nothing is deformed."""
        before, after = (self._loss(scene, each) for each in (torch.zeros_like(v), v))
        if before is None or after is None or transforms.active():
            return {}
        words = "the images are less alike than without a deformation, by {:.3g} after {:.3g}: try a smaller step"
        both = enumerate(zip(before.tolist(), after.tolist(), strict=True))
        return {i: (Status.INFEASIBLE, words.format(b, a)) for i, (a, b) in both if b > a * (1 + SLACK) + 1e-6}

    def _learned(self) -> list[Tensor]:
        """The tensors of the parts that are learned."""
        modules = [each for each in (self.similarity, self.features, self.smoother) if isinstance(each, nn.Module)]
        return [parameter for module in modules for parameter in module.parameters()]

    def _problem(self, v: Tensor, scene: Scene, level: tuple[int, float | Tensor, float | Tensor]) -> FixedPoint:
        _, smoothing, step = level
        smoothing, step = (torch.as_tensor(each, dtype=v.dtype, device=v.device) for each in (smoothing, step))
        squarings = self.squarings if self.form == "velocity" else None
        cell = partial(_balance, self.similarity, self.smoother, scene.grid, scene.interpolation, squarings)
        args = (scene.fixed, scene.moving, scene.leave, scene.mask, _of_samples(step, v), scene.x)
        return FixedPoint(cell, v, (*args, smoothing.reshape(())), 1, (0, 1, 2, 3, 4))


def _balance(
    similarity: Any,
    smoother: nn.Module | None,
    grid: Grid,
    interpolation: Interpolation,
    squarings: int | None,
    v: Tensor,
    fixed: Tensor,
    moving: Tensor,
    leave: Tensor,
    mask: Tensor | None,
    step: Tensor,
    x: Tensor,
    smoothing: Tensor,
) -> Tensor:
    """One step: along the force, and smoothed. `(B, D, *S)` to the same."""
    u = v if squarings is None else exponential(v, squarings, interpolation=interpolation)
    warped, weights = seen(moving, leave, mask, x, u, interpolation)
    units = grid.units
    gradient = torch.stack([difference(warped, 2 + axis) / unit for axis, unit in enumerate(units)], 2)
    force = similarity.force(fixed, warped, gradient, units, weights)
    force = torch.stack([part / unit for part, unit in zip(force.unbind(1), units, strict=True)], 1)
    v = gaussian(v + step * force, grid.voxels(smoothing))
    return v if smoother is None else smoother(v, fixed)


def _of_samples(step: Tensor, v: Tensor) -> Tensor:
    """Steps of all samples, `(B, 1, ...)`: one for all, one each, or one for every voxel."""
    if step.numel() == 1:
        return step.reshape(1, *[1] * (v.ndim - 1)).expand(len(v), *[1] * (v.ndim - 1))
    if step.shape == v.shape[:1]:
        return step.view(-1, *[1] * (v.ndim - 1))
    if step.shape != (len(v), 1, *v.shape[2:]):
        raise ValueError(
            f"Demons(levels): got a step {tuple(step.shape)}, expected one number, one a sample, ({len(v)},), or one a "
            f"voxel of its level, {(len(v), 1, *v.shape[2:])}"
        )
    return step


def _is_level(level: Any) -> bool:
    if not isinstance(level, tuple | list) or len(level) != 3:
        return False
    shrink, smoothing, step = level
    fine = is_count(shrink) and shrink & (shrink - 1) == 0
    fine = fine and not (isinstance(smoothing, Tensor) and smoothing.numel() > 1)
    return fine and all(
        isinstance(each, Tensor) or (is_number(each) and 0 < each < math.inf) for each in (smoothing, step)
    )

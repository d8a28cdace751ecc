"""The truncated Newton method: conjugate gradients on the Hessian, downhill also where that is indefinite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.core.problem import Slope
from torchimplicit.core.tree import norm
from torchimplicit.linear import Jacobian
from torchimplicit.solve.linesearch import Place, descend, dot
from torchimplicit.solve.minimiser import Minimiser
from torchimplicit.solve.units import due, hessian_of, units_of

REACH = 10.0  # a direction in which the energy hardly bends is followed so many times |z|, or |g|, at first


class NewtonCGState(NamedTuple):
    """A place, who still moves, and the gradient's norm at the start, `(B,)`, in the units of the unknowns, `(B, n)`.

    Also by how much energies are wrong beyond their rounding, `(B,)`, and how many steps there were.
    """

    z: Tensor
    residual: Tensor
    energy: Tensor
    active: Tensor
    first: Tensor
    noise: Tensor
    units: Tensor
    age: int


@dataclass(frozen=True, kw_only=True)
class NewtonCG(Minimiser):
    r"""Newton's method by truncated conjugate gradients with a line search, for minima.

    Solves $H d = -g$ to a relative residual of $\min(1/2, \sqrt{|g| / |g_0|})$ by conjugate gradients, sample by
    sample. Where they meet a direction $p$ with $p^\top H p \le 0$, they go along it as far as they would if the energy
    bent as much the other way, and stop: so the iterates leave maxima and saddles, to which `Newton` goes when it is
    near. Converges superlinearly. A product with the Hessian costs about two evaluations; few are spent far from the
    minimum. Up to 256 unknowns the Hessian is built for the first step, and ever more rarely, for the units that its
    diagonal tells: the steps do not depend on those of the unknowns. Beyond, scale them to one size. Not for cheap,
    well conditioned energies, where `LBFGS` takes less time. `Unrolled` cannot differentiate through it.

    Source: J. Nocedal and S. Wright, Numerical Optimization (2nd ed. 2006), algorithm 7.1, but for what it does with
    negative curvature.

    Args:
        products: most products with the Hessian in one step, >= 1.
        trials: most lengths of a step to try, >= 1; an evaluation each.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.
    """

    products: int = 200
    trials: int = 20

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "products", "trials")

    def init(self, problem: Slope, z: Tensor) -> NewtonCGState:
        """The state at the start."""
        place, active = self.begin(problem, z)
        return NewtonCGState(*place, active, place.energy, torch.zeros_like(place.energy), torch.ones_like(z), 0)

    def step(self, problem: Slope, state: NewtonCGState) -> NewtonCGState:
        """One truncated Newton step."""
        place, active, units = Place(*state[:3]), state.active, state.units
        jacobian = Jacobian(problem, place.z)
        if due(state.age):
            hessian = hessian_of(jacobian, place.z)
            units = units if hessian is None else units_of(hessian)
        size = norm(units * place.residual)
        first = state.first if state.age else size
        forcing = (size / first).sqrt().clamp_max(0.5)
        direction = self._direct(jacobian, place, units, forcing * size, active)
        moved, holds, noise = descend(problem, place, direction, active, self.trials, state.noise)
        active = active & (holds | (moved.z != place.z).any(1))
        return NewtonCGState(*moved, active, first, noise, units, state.age + 1)

    def _direct(self, hessian: Jacobian, place: Place, units: Tensor, target: Tensor, running: Tensor) -> Tensor:
        """The direction `(B, n)`, from conjugate gradients in some units down to residuals of `target`, `(B,)`."""
        tiny, eps = torch.finfo(target.dtype).tiny, torch.finfo(target.dtype).eps
        r = units * place.residual
        x, p, square = torch.zeros_like(r), -r, dot(r, r)
        farthest = REACH * torch.maximum(norm(place.z / units), norm(r))
        running = running & (square < math.inf)
        for _ in range(self.products):
            if not bool(running.any()):
                break
            product = units * hessian.rmatvec(units * p)
            bend, length = dot(p, product), norm(p)
            concave = bend <= eps * length * norm(product)
            alpha = square / bend.abs().clamp_min(tiny)
            alpha = torch.where(concave, torch.minimum(alpha, farthest / length), alpha)
            alpha = torch.where(running & alpha.isfinite(), alpha, 0).unsqueeze(1)
            x, r = x + alpha * p, r + alpha * product
            square, before = dot(r, r), square
            p = torch.where(running.unsqueeze(1), (square / before).unsqueeze(1) * p - r, p)
            running = running & ~concave & (square.sqrt() > target)
        return units * x

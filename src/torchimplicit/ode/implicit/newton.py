"""The stage equations of an implicit step: `w = g f(t, b + w)`, by simplified Newton steps, sample by sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.tree import norm
from torchimplicit.linear import Jacobian
from torchimplicit.path.stepsize import Tolerance

FieldFunction = Callable[[Tensor, Tensor], Tensor]  # of (t, y)

SLOW = 0.1  # a contraction worse than this asks for a new Jacobian
REJECTED = 1e6  # error over tolerance of a step whose equations were not solved
DRIFT = 0.2  # a relative change of the step size beyond this asks for a new factorisation


def jacobian(field: FieldFunction, t: Tensor, y: Tensor) -> Tensor:
    """The Jacobians of a field by the state, `(B, n, n)`, without a graph: `n` vector-Jacobian products at once."""
    y = y.detach()
    if not transforms.active():
        with torch.no_grad():
            return Jacobian(lambda state: field(t, state), y).dense(y)
    _, vjp, *_ = torch.func.vjp(lambda state: field(t, state), y)
    basis = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    return torch.vmap(lambda row: vjp(row.expand(y.shape))[0], out_dims=1)(basis).detach()


def all_of(mask: Tensor) -> bool:
    """Whether all are true; False inside `vmap`, where that cannot be known."""
    return not transforms.is_mapped(transforms.unwrapped(mask)) and bool(mask.all())


class Factors:
    """The factored matrices `I - g J` of every sample, `(B, n, n)`.

    Args:
        jac: Jacobians, `(B, n, n)`.
        g: step size times the method's diagonal, `(B, 1)`.
    """

    def __init__(self, jac: Tensor, g: Tensor):
        eye = torch.eye(jac.shape[1], dtype=jac.dtype, device=jac.device)
        self.lu, self.pivots, _ = torch.linalg.lu_factor_ex(torch.sub(eye, g.unsqueeze(2) * jac))

    def solve(self, right: Tensor) -> Tensor:
        """Solves for one right side `(B, n)`."""
        return torch.linalg.lu_solve(self.lu, self.pivots, right.unsqueeze(2)).squeeze(2)

    def update(self, which: Tensor, other: Factors) -> None:
        """Takes over the factors of some samples."""
        self.lu = torch.where(which.view(-1, 1, 1), other.lu, self.lu)
        self.pivots = torch.where(which.view(-1, 1), other.pivots, self.pivots)


class Equation:
    """One stage's equation, `w = g f(t, b + w)`.

    Args:
        field: the vector field.
        t: time, `(B,)`.
        g: step size times the method's diagonal, `(B, 1)`.
        base: `b`, what is known of the stage's state, `(B, n)`.
        scale: an update of this size, `(B, n)`, has norm 1.
    """

    def __init__(self, field: FieldFunction, t: Tensor, g: Tensor, base: Tensor, scale: Tensor):
        self.field, self.t, self.g, self.base, self.scale = field, t, g, base, scale

    def update(self, w: Tensor, factors: Factors) -> Tensor:
        """A Newton step from `w`."""
        return factors.solve(self.g * self.field(self.t, self.base + w) - w)

    def solve(
        self, w: Tensor, factors: Factors, done: Tensor, tolerance: float, limit: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Newton steps until every sample has arrived or failed.

        A sample has arrived when the update after the next would be below the tolerance by its rate of contraction, or
        is one of rounding. It has failed when updates grow or are not finite.

        Args:
            w: where to start, `(B, n)`.
            factors: of about the right matrices.
            done: which samples to leave alone, `(B,)`.
            tolerance: for the norm of the error in units of `scale`.
            limit: steps at most.

        Returns:
            The solution, which samples failed, and the worst rate of contraction of each.
        """
        failed, worst = torch.zeros_like(done), torch.zeros_like(w[:, 0])
        rounding = 8 * torch.finfo(w.dtype).eps * norm((self.base.abs() + w.abs()) / self.scale)
        last = None
        for _ in range(limit):
            move = self.update(w, factors)
            w = torch.where(done.unsqueeze(1), w, w + move)
            size = norm(move / self.scale)
            arrived = size <= torch.maximum(rounding, 0.01 * tolerance * torch.ones_like(rounding))
            broken = ~size.isfinite()
            if last is not None:
                rate = size / last
                arrived = arrived | ((rate < 1) & (size * rate <= tolerance * (1 - rate)))
                broken = broken | (rate >= 2) & ~arrived
                worst = torch.where(done | (size <= rounding), worst, torch.maximum(worst, rate))
            failed = failed | (broken & ~done)
            done = done | arrived | broken
            last = size
            if all_of(done):
                break
        return w, failed | ~done, worst


class JacobianCache:
    """The Jacobians and factors of a solve, renewed for those samples that need it.

    A sample's Jacobian serves over stages and steps until its Newton steps contract slowly or fail; its factors until
    its step size has changed by more than a fifth. Who renews does not depend on other samples.

    Args:
        gamma: the method's diagonal.
        tolerance: of the solve.
        stage_tol: the error of a stage over the tolerance.
        limit: Newton steps a stage at most.
    """

    def __init__(self, gamma: float, tolerance: Tolerance, stage_tol: float, limit: int):
        self.gamma, self.tolerance, self.stage_tol, self.limit = gamma, tolerance, stage_tol, limit
        self.begun = False
        self.jac: Tensor  # from the first step on

    def begin(self, field: FieldFunction, t: Tensor, h: Tensor, y: Tensor) -> None:
        """Readies for a step of sizes `(B,)` from `(t, y)`."""
        self.field, self.t, self.y = field, t, y
        self.g = (self.gamma * h).to(y.dtype).unsqueeze(1)
        self.scale = self.tolerance_scale(y)
        self.moving = h != 0
        self.failed = torch.zeros_like(self.moving)
        if not self.begun:
            self.begun = True
            self.jac, self.when, self.slow = jacobian(field, t, y), t, torch.zeros_like(self.moving)
            self.factored, self.factors = self.g, Factors(self.jac, self.g)
            return
        stale = self.slow & (self.when != t) & self.moving
        drifted = ((self.g - self.factored).abs() > DRIFT * self.factored.abs()).squeeze(1)
        self.slow = torch.zeros_like(self.slow)
        renews, changes = torch.stack((stale, drifted)).any(1).tolist()
        if renews:
            self._renew(stale)
        if renews or changes:
            self._factor(stale | drifted)

    def tolerance_scale(self, y: Tensor) -> Tensor:
        """Updates of the size of the tolerance, `(B, n)`: their norm is 1."""
        scale = y.abs() * self.tolerance.rtol + self.tolerance.atol
        return scale.clamp_min(torch.finfo(y.dtype).tiny)

    def strict_scale(self, y: Tensor) -> Tensor:
        """The same, but never looser than the state: for gradients, whatever the tolerance."""
        return torch.minimum(self.tolerance_scale(y), y.abs().amax(1, keepdim=True).clamp_min(1e-3))

    def solve(self, t: Tensor, base: Tensor, guess: Tensor) -> Tensor:
        """A stage's `w`, `(B, n)`, at times `(B,)`; notes who failed."""
        equation = Equation(self.field, t, self.g, base, self.scale)
        w, failed, worst = equation.solve(guess, self.factors, self.failed, self.stage_tol, self.limit)
        again = failed & (self.when != self.t)
        if bool(again.any()):
            self._renew(again)
            self._factor(again)
            other, fails, rate = equation.solve(guess, self.factors, ~again, self.stage_tol, self.limit)
            w, worst = torch.where(again.unsqueeze(1), other, w), torch.where(again, rate, worst)
            failed = torch.where(again, fails, failed)
        self.slow = self.slow | (worst > SLOW)
        self.failed = self.failed | failed
        return w

    def judge(self, end: Tensor, error: Tensor, damps: bool) -> tuple[Tensor, Tensor]:
        """The end of the step and its error, `(B, n)` each: too large an error for samples whose stages failed.

        Args:
            end: found, `(B, n)`.
            error: its estimate.
            damps: see `StiffTableau`.
        """
        error = self.factors.solve(error) if damps else error
        if not bool(self.failed.any()):
            return end, error
        failed = self.failed.unsqueeze(1)
        large = REJECTED * self.scale / self.scale.shape[1] ** 0.5
        large = torch.where(end.isfinite().all(1, keepdim=True), large, torch.inf)
        return torch.where(failed, self.y, end), torch.where(failed, large, error)

    def _renew(self, which: Tensor) -> None:
        self.jac = torch.where(which.view(-1, 1, 1), jacobian(self.field, self.t, self.y), self.jac)
        self.when = torch.where(which, self.t, self.when)

    def _factor(self, which: Tensor) -> None:
        self.factors.update(which, Factors(self.jac, self.g))
        self.factored = torch.where(which.unsqueeze(1), self.g, self.factored)


def differentiable_stage(equation: Equation, guess: Tensor, factors: Factors, derivatives: int) -> Tensor:
    r"""A stage's `w` with its graph: exact to rounding, and so are its derivatives up to an order.

    From a solution $w_0$ without a graph, of an equation with one, a step $w - (I - g J)^{-1} (w - g f(t, b + w))$ with
    the matrix held gives the first derivative exactly, and every step more another order.

    Args:
        equation: the equation, with its graph.
        guess: where to start, `(B, n)`.
        factors: of the matrices at the start of the step.
        derivatives: how many orders.
    """
    with torch.no_grad():
        values = (equation.t.detach(), equation.g.detach(), equation.base.detach())
        held = Equation(equation.field, *values, equation.scale)
        done = torch.zeros_like(values[0], dtype=torch.bool)
        precise = torch.finfo(guess.dtype).eps ** 0.5
        w = held.solve(guess.detach(), factors, done, precise, 10)[0].detach()
        for _ in range(4):  # the matrix of the very solution, on which the derivatives depend
            factors = Factors(jacobian(equation.field, values[0], values[2] + w), values[1])
            w = (w + held.update(w, factors)).detach()
            move = held.update(w, factors).detach()
            if all_of(norm(move) <= precise * norm(values[2] + w)):
                break
    for _ in range(derivatives):
        w = w + equation.update(w, factors)
    return w

r"""Programs with a logarithmic barrier left in, whose solutions depend smoothly on everything.

$$ \min_z \tfrac12 z^\top Q z + q^\top z - \mu \sum_i \log(u_i - r_i^\top z) - \mu \sum_i \log(r_i^\top z - \ell_i)
   \quad\text{subject to}\quad A z = b $$
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint import Implicit
from torchimplicit.core import transforms
from torchimplicit.core.failures import failures_under
from torchimplicit.core.status import ConvergenceError, ConvergenceWarning, OnFailure, Status
from torchimplicit.equations import root
from torchimplicit.linear import LU
from torchimplicit.optim.quadprog.active_set import independent_rows
from torchimplicit.optim.quadprog.certificate import contradiction
from torchimplicit.optim.quadprog.interior import interior
from torchimplicit.optim.quadprog.kkt import KKT, factor
from torchimplicit.optim.quadprog.prepare import Prepared
from torchimplicit.optim.quadprog.program import Program, times, times_transposed
from torchimplicit.optim.quadprog.reduction import reduce
from torchimplicit.optim.quadprog.report import SmoothedReport
from torchimplicit.optim.quadprog.search import solutions
from torchimplicit.solve import Newton

Meets = Callable[[Tensor, Tensor, float], Tensor]  # zero where a multiplier and its room have the product mu

_PROXIMAL = 1e-6
_NEWTON = Newton(linear_solver=LU(), rtol=1e-12, atol=1e-11, max_steps=50)


def smooth(
    program: Program, weight: float, max_steps: int, on_failure: OnFailure
) -> tuple[Tensor, Tensor, SmoothedReport]:
    """Solution `(B, n)` and multipliers `(B, r)` of the programs with a barrier of a weight, and how it went.

    Raises:
        NotImplementedError: inside `torch.func` transforms.
        ValueError: a row has two equal bounds and is not stated as an equation.
    """
    if transforms.active():
        raise NotImplementedError("qp(smoothed=...) does not work under torch.func transforms; try torch.autograd.grad")
    p, n, m = program.equalities, program.q.shape[1], program.rows.shape[1] - program.equalities
    if bool((program.lower == program.upper)[:, p:].any()):
        raise ValueError("qp(smoothed=...): got l = u for some row, where a barrier has no room; try A and b for it")
    with torch.no_grad():
        start, kept, steps = _start(program, weight, max_steps)
        has_upper, has_lower = program.upper[:, p:].isfinite(), program.lower[:, p:].isfinite()

    def residual(
        state: Tensor, Q: Tensor, q: Tensor, rows: Tensor, lower: Tensor, upper: Tensor, meets: Meets = _product
    ) -> Tensor:
        z, nu, above, below = state.split((n, p, m, m), 1)
        reached = times(rows, z)
        force = q + times(Q, z) + times_transposed(rows, torch.cat((nu, above - below), 1))
        equations = torch.where(kept, reached[:, :p] - lower[:, :p], nu)
        room_above = torch.where(has_upper, upper[:, p:], 0.0) - reached[:, p:]
        room_below = reached[:, p:] - torch.where(has_lower, lower[:, p:], 0.0)
        above = torch.where(has_upper, meets(above, room_above, weight), above)
        below = torch.where(has_lower, meets(below, room_below, weight), below)
        return torch.cat((force, equations, above, below), 1)

    options: dict[str, Any] = {"solver": _NEWTON, "adjoint": Implicit(LU())}
    options["on_failure"] = failures_under(on_failure).backward_only().under(on_failure)
    solution = _root(residual, start, program, options)
    good = _inside(program, solution.value)
    if not bool(good.all()):  # the product is met by two negative numbers as well
        with torch.no_grad():
            other = _root(partial(residual, meets=_both_positive), start, program, options | {"on_failure": "ignore"})
        steps = steps + torch.where(good, 0, other.steps)
        solution = _root(residual, torch.where(good.unsqueeze(1), start, other.value), program, options)
    z, nu, above, below = solution.value.split((n, p, m, m), 1)
    met = (times(program.rows, z) - program.lower)[:, :p].abs().sum(1) < 1e-6
    y, status = (
        torch.cat((nu, above - below), 1),
        Status.MAX_STEPS.unless(_inside(program, solution.value) & met, solution.status),
    )
    return z, y, SmoothedReport(solution.report, _told(program, start[:, :n], status), steps + solution.steps)


def _inside(program: Program, state: Tensor) -> Tensor:
    """Which states `(B,)` keep to every inequality, and whose multipliers push the right way."""
    p, n = program.equalities, program.q.shape[1]
    reached = times(program.rows, state[:, :n])[:, p:]
    kept_to = (reached <= program.upper[:, p:]) & (reached >= program.lower[:, p:])
    return kept_to.all(1) & (state[:, n + p :] >= 0).all(1)


def _root(residual: Callable[..., Tensor], start: Tensor, program: Program, options: dict[str, Any]) -> Any:
    """The root, also where it was not found; who called says it better."""
    try:
        with warnings.catch_warnings():  # a backward solve speaks for itself
            warnings.simplefilter("ignore", ConvergenceWarning)
            return root(residual, start, *program.tensors, **options)
    except ConvergenceError as error:
        return error.solution


def _product(multiplier: Tensor, room: Tensor, weight: float) -> Tensor:
    return multiplier * room - weight


def _both_positive(multiplier: Tensor, room: Tensor, weight: float) -> Tensor:
    """Zero at a product of `weight` of positive numbers alone (C. Kanzow, 1996), but for more rounding."""
    return multiplier + room - ((multiplier - room).square() + 4 * weight).sqrt()


def _told(program: Program, z: Tensor, status: Tensor) -> Tensor:
    """The statuses `(B,)`, of programs without an answer whether they contradict themselves; `z` is where to begin."""
    lost = status != Status.CONVERGED
    if not bool(lost.any()):
        return status
    contradicts = (contradiction(program.mapped(torch.detach), z, solutions) != 0).any(1)
    return torch.where(lost, Status.INFEASIBLE.where(contradicts, Status.MAX_STEPS), status)


def _start(program: Program, weight: float, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """A state near the barrier's, from the interior-point method on its way; equations that count; steps."""
    p, size = program.equalities, program.Q.abs().amax((1, 2))
    regularisation = _PROXIMAL * torch.where(size > 0, size, program.q.abs().amax(1).clamp_min(1.0))
    cholesky, _ = factor(program.Q + torch.diag_embed(regularisation.unsqueeze(1).expand_as(program.q)))
    kept = independent_rows(program.rows[:, :p], torch.ones_like(program.lower[:, :p], dtype=torch.bool), p)
    y, steps = program.q.new_zeros(program.batch, 0), torch.zeros_like(program.q[:, 0], dtype=torch.int64)
    above = below = y
    if program.rows.shape[1] > p:
        part = replace(program, Q=cholesky @ cholesky.mT)
        begin = reduce(Prepared.of(part, cholesky))
        lower, upper = program.lower[:, p:] / begin.scale, program.upper[:, p:] / begin.scale
        inner = interior(begin.reduction, begin.w, lower, upper, 1e-10, max_steps, floor=weight)
        y, steps = torch.nan_to_num(inner.y / begin.scale), inner.steps
        weights = torch.nan_to_num(inner.weight).split(y.shape[1], 1)
        above, below = weights[0] / begin.scale, weights[1] / begin.scale if len(weights) > 1 else torch.zeros_like(y)
    force = program.q + times_transposed(program.rows[:, p:], y)
    equations = KKT.build(cholesky @ cholesky.mT, program.rows[:, :p], kept, cholesky)
    z, nu, _ = equations.solve(-force, equations.gather(program.upper[:, :p]))
    return torch.cat((z, equations.scatter(nu, p), above, below), 1), kept, steps

"""Any convex programs: an interior point on the whole system, in the programs' own units, and a repaired guess."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point, settle
from torchimplicit.optim.quadprog.augmented import Augmented
from torchimplicit.optim.quadprog.interior import interior
from torchimplicit.optim.quadprog.program import Program, largest
from torchimplicit.optim.quadprog.repeats import Repeats
from torchimplicit.optim.quadprog.singular import Singular
from torchimplicit.optim.quadprog.units import Units
from torchimplicit.optim.quadprog.verdict import TOLERANCE, judge, met

_WARM_ROUNDS = 6
_STAGES = ((1e-9, 6), (0.0, 12))  # tolerance of the interior point (none: as near as it comes), rounds of repair


def general(near: Program, stated: Program, guess: Tensor | None, max_steps: int) -> tuple[Point, Tensor]:
    """Solves programs whatever their rank, without repeated rows, in units in which all is about one.

    Args:
        near: the programs without bounds that are far out.
        stated: the programs as they are stated, by which they are judged.
        guess: bounds that may be met, `(B, r)`.
        max_steps: of the interior point.

    Returns:
        What was found, settled where it is a solution, and its residual, `(B,)`.
    """
    result, residual = Point.nothing(stated), torch.full_like(stated.q[:, 0], torch.inf)
    program, repeats = Repeats.merged(near)
    whole, same = stated, repeats
    units = Units.of(program)
    scaled, rows = units.scaled(program), stated.rows * units.rows.unsqueeze(2) * units.z.unsqueeze(1)
    Q, index = scaled.Q, torch.arange(program.batch, device=program.q.device)
    bounded = bool(stated.rows.shape[1])
    warm = [(torch.inf, _WARM_ROUNDS)] if guess is not None or not bounded else []
    for tol, rounds in (*warm, *(_STAGES if bounded else ())):
        if tol == torch.inf:
            side = torch.zeros_like(scaled.lower, dtype=torch.int8) if guess is None else guess
            side = torch.where(scaled.target(side).isfinite(), side, 0)
            point, center = settle(scaled, side, result.steps[index], rounds), None
        else:
            inner = interior(Augmented.of(scaled), scaled.lower, scaled.lower, scaled.upper, tol, max_steps)
            center = torch.nan_to_num(inner.z), torch.nan_to_num(inner.y)
            point = settle(scaled, inner.side, inner.steps + result.steps[index], rounds, center=center)
            _retry(scaled, point, inner.near, rounds, center)
        residual[index] = _better(stated, units, repeats, point, center)
        result.put(index, point)
        left = torch.nonzero(~point.settled).flatten()
        if not len(left):
            break
        index, stated, scaled, units = index[left], stated.take(left), scaled.take(left), units.take(left)
        repeats = None if repeats is None else repeats.take(left)
    at = torch.nonzero(result.settled).flatten()
    if len(at):
        holding = result.side[at] != 0
        if same is not None:  # the others of a kind could hold as well
            holds = met(whole.take(at), result.z[at])
            holding = holding | (same.take(at).alike(holding) & holds)
        result.loose[at] = torch.stack(Singular.build(Q[at], rows[at], holding).loose(), 1)
    return result, residual


def _retry(program: Program, point: Point, side: Tensor | None, rounds: int, center: tuple[Tensor, Tensor]) -> None:
    """Tries, where nothing has settled, all bounds that may be met: some of them hold nothing."""
    left = torch.nonzero(~point.settled).flatten()
    if len(left) and side is not None:
        part, center = program.take(left), (center[0][left], center[1][left])
        again = settle(part, side[left], point.steps[left], rounds, center=center)
        at = torch.nonzero(again.settled).flatten()
        point.put(left[at], again.take(at))


def _better(
    program: Program, units: Units, repeats: Repeats | None, point: Point, center: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Takes the interior point where that is nearer to a solution, of the stated program; the residuals."""
    point.saddle = None
    if repeats is not None:
        point.side = repeats.apart(point.side, scaled=False)
    point.z, point.y = _stated(point.z, point.y, units, repeats)
    residual, point.settled = judge(program, point.z, point.y)
    residual = torch.nan_to_num(residual, nan=torch.inf)
    if center is None or bool(point.settled.all()):
        return residual
    z, y = _stated(*center, units, repeats)
    inside, enough = judge(program, z, y)
    closer = ~point.settled & ~(inside >= residual)
    point.settled = point.settled | (closer & enough)
    pull = y * program.length
    holding = torch.where(pull.abs() > TOLERANCE * largest(pull).unsqueeze(1), y.sign(), 0).to(torch.int8)
    point.side = torch.where(closer.unsqueeze(1), holding, point.side)
    point.z, point.y = (torch.where(closer.unsqueeze(1), x, own) for x, own in ((z, point.z), (y, point.y)))
    return torch.where(closer, inside, residual)


def _stated(z: Tensor, y: Tensor, units: Units, repeats: Repeats | None) -> tuple[Tensor, Tensor]:
    """Solution and multipliers of the stated program."""
    y = y * units.y
    return z * units.z, y if repeats is None else repeats.apart(y, scaled=True)

"""Solves programs by Clarabel, one at a time: an interior point, the exact solution beside it, or a certificate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim.quadprog.active_set import SingularSolver, polish, with_equations
from torchimplicit.optim.quadprog.certificate import as_shortest
from torchimplicit.optim.quadprog.convexity import NEGATIVE, convexified
from torchimplicit.optim.quadprog.exchange import to_the_last_digit
from torchimplicit.optim.quadprog.far import without_infinite
from torchimplicit.optim.quadprog.program import Program, times
from torchimplicit.optim.quadprog.solve import Outcome
from torchimplicit.optim.quadprog.sparse.certificate import prove
from torchimplicit.optim.quadprog.sparse.factor import is_convex
from torchimplicit.optim.quadprog.sparse.interior_point import interior_point
from torchimplicit.optim.quadprog.sparse.kkt import SparseKKT, Systems
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix
from torchimplicit.optim.quadprog.units import Units
from torchimplicit.optim.quadprog.verdict import judge

_WARM_ROUNDS = 6
_STAGES = ((1e-8, 6), (1e-13, 12))  # tolerance of Clarabel (the last: as near as it comes), rounds of repair
_EXACT = 1e-11

System = tuple[SparseKKT, Units]


def by_clarabel(program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0) -> Outcome:
    """Solves every program of a batch, on the CPU, or says why it has no solution; see `solve.solve`.

    Args:
        program: dense or sparse; sparse ones leave the systems of the derivatives.
        guess: bounds that may be met, `(B, r)`.
        max_steps: of Clarabel.
        rounding: of the dtype that the program came in.
    """
    own = without_infinite(program.mapped(lambda part: part.cpu()))
    convex = _convex(own, rounding).tolist()
    outcome, systems = Outcome.nothing(own), []
    for sample in range(own.batch):
        at = torch.tensor([sample], device="cpu")
        one = _alone(own, at)
        if convex[sample]:
            found, system = _solve(one, None if guess is None else guess[at].cpu(), max_steps)
        else:
            found, system = Outcome.nothing(one, Status.NONCONVEX), None
        outcome.put(at, found)
        systems.append(system)
    outcome.by_clarabel = torch.ones_like(outcome.status, dtype=torch.bool)
    outcome.point.kkt = Systems(systems) if program.is_sparse else None
    outcome.to(program.q.device)
    return outcome


def fall_back(program: Program, outcome: Outcome, max_steps: int, rounding: float) -> None:
    """Leaves to Clarabel the dense programs that are neither solved nor proved to have no solution."""
    left = torch.nonzero(outcome.status == Status.MAX_STEPS).flatten()
    if not len(left):
        return
    again = by_clarabel(program.take(left), None, max_steps, rounding)
    again.point.steps = again.point.steps + outcome.point.steps[left]
    outcome.by_clarabel = torch.zeros_like(outcome.status, dtype=torch.bool).index_fill(0, left, True)
    better = torch.nonzero((again.status != Status.MAX_STEPS) | ~(again.residual >= outcome.residual[left])).flatten()
    outcome.put(left[better], again.take(better))


def _alone(program: Program, at: Tensor) -> Program:
    """One of the programs, sparse."""
    one = program.take(at)
    if one.is_sparse:
        return one
    Q, rows = SparseMatrix.of(one.Q[0]), SparseMatrix.of(one.rows[0])
    return replace(one, Q=Q, rows=rows)


def _convex(program: Program, rounding: float) -> Tensor:
    """Which programs are convex, but for rounding, `(B,)`."""
    if not program.is_sparse:
        return convexified(program.Q, rounding)[0]
    Q, _ = program.sparse
    shift = max(NEGATIVE, 4 * Q.size[0] ** 0.5 * rounding) * float(Q.abs().amax((1, 2)))
    convex = is_convex(Q.values, Q.row, Q.column, Q.size[0], shift)
    return torch.full((program.batch,), convex, device="cpu")


def _solve(program: Program, guess: Tensor | None, max_steps: int) -> tuple[Outcome, System | None]:
    """Solves one convex program; the system of its derivatives."""
    units = Units.of(program)
    scaled, steps = units.scaled(program), torch.zeros(1, dtype=torch.int64, device="cpu")
    best, claim = Outcome.nothing(program), None
    bounded = bool(((scaled.lower != scaled.upper) & (scaled.lower.isfinite() | scaled.upper.isfinite())).any())
    for stage in ([None] if guess is not None or not bounded else []) + list(_STAGES):
        if stage is None:
            active = torch.zeros_like(best.point.active) if guess is None else guess
            active = with_equations(scaled, torch.where(scaled.target(active).isfinite(), active, 0))
            point = polish(SingularSolver(scaled, build=SparseKKT), active, steps, _WARM_ROUNDS)
        else:
            tol, rounds = stage
            claim = interior_point(scaled, max_steps, tol)
            steps = steps + claim.steps
            if claim.status in (Status.INFEASIBLE, Status.UNBOUNDED):
                break
            active = with_equations(scaled, _heading_for(scaled, claim.z, claim.y))
            point = polish(SingularSolver(scaled, (claim.z, claim.y), SparseKKT), active, steps, rounds)
        steps = point.steps
        to_the_last_digit(scaled, point, SparseKKT)
        point.z, point.y = point.z * units.z, point.y * units.y
        residual, point.optimal = judge(program, point.z, point.y)
        point.residual = residual.nan_to_num(torch.inf)
        if float(point.residual) < float(best.residual):
            best.point, best.residual = point, point.residual
        if float(point.residual) <= _EXACT:
            break
    best.point.steps = steps
    if bool(best.point.optimal):
        return _solved(scaled, units, best)
    assert claim is not None
    best.point.active = torch.zeros_like(best.point.active)
    status, weights, direction = prove(scaled, claim, best.point.z / units.z, max_steps)
    best.status.fill_(int(status))
    best.proof = as_shortest(program, weights * units.rows), direction * units.z
    return best, None


def _solved(scaled: Program, units: Units, found: Outcome) -> tuple[Outcome, System]:
    """What was found, with the system of the rows that hold."""
    point, kkt = found.point, found.point.kkt
    found.status.fill_(int(Status.CONVERGED))
    if not isinstance(kkt, SparseKKT) or bool((kkt.on != (point.active[0] != 0)).any()):
        kkt = SparseKKT(scaled, point.active)
    point.loose = torch.tensor([kkt.loose()], device="cpu")
    return found, (kkt, units)


def _heading_for(program: Program, z: Tensor, y: Tensor) -> Tensor:
    """The bounds that an interior point is heading for: where the multiplier outweighs the slack. `(1, r)`."""
    reached = times(program.rows, z)
    above, below = y * program.length > program.upper - reached, -y * program.length > reached - program.lower
    above = above | (program.lower == program.upper)
    return torch.where(above, 1, torch.where(below, -1, 0)).to(torch.int8)

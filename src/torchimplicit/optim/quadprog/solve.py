"""Solves a batch of quadratic programs, or proves that they have no solution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim.quadprog.active_set import Point
from torchimplicit.optim.quadprog.certificate import contradiction, ray
from torchimplicit.optim.quadprog.far import without_infinite
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.search import search, solutions


@dataclass
class Outcome:
    """What was found.

    Attributes:
        point: solutions; of programs without one the best that was found, and no bound counts as met.
        status: `Status` values, `(B,)`.
        residual: see `judge`, `(B,)`.
        proof: multipliers that prove infeasibility, `(B, r)`, and directions along which the objective falls for ever,
            `(B, n)`; zero elsewhere. None if all are solved.
        by_clarabel: which programs were left to Clarabel in the end, `(B,)`; None for none.
    """

    point: Point
    status: Tensor
    residual: Tensor
    proof: tuple[Tensor, Tensor] | None = None
    by_clarabel: Tensor | None = None

    @staticmethod
    def nothing(program: Program, status: Status = Status.MAX_STEPS) -> Outcome:
        """Zero, for all programs."""
        point = Point.nothing(program)
        return Outcome(point, torch.full_like(point.steps, int(status)), point.residual.clone())

    def put(self, index: Tensor, other: Outcome) -> None:
        """Overwrites some of the programs."""
        self.point.put(index, other.point)
        self.status[index], self.residual[index] = other.status, other.residual
        if other.proof is not None:
            zero = torch.zeros_like(self.point.y), torch.zeros_like(self.point.z)
            self.proof = zero if self.proof is None else self.proof
            for mine, its in zip(self.proof, other.proof, strict=True):
                mine[index] = its

    def take(self, index: Tensor) -> Outcome:
        """Some of the programs."""
        proof = None if self.proof is None else (self.proof[0][index], self.proof[1][index])
        return Outcome(self.point.take(index), self.status[index], self.residual[index], proof)

    def to(self, device: torch.device) -> None:
        """Moves all there is, but factors."""
        if self.status.device == device:
            return
        parts, loose = (part.to(device) for part in self.point.parts()), self.point.loose
        loose = None if loose is None else loose.to(device)
        self.point = Point(*parts, loose=loose, kkt=self.point.kkt)
        self.status, self.residual = self.status.to(device), self.residual.to(device)
        self.proof = None if self.proof is None else (self.proof[0].to(device), self.proof[1].to(device))
        self.by_clarabel = None if self.by_clarabel is None else self.by_clarabel.to(device)


def solve(program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0) -> Outcome:
    """Solves every program, or says why it has no solution.

    Args:
        program: finite but for missing bounds.
        guess: bounds that may be met, `(B, r)`, from an earlier solution; None starts cold.
        max_steps: of the interior-point method.
        rounding: of the dtype that the program came in: `Q` may be indefinite by some of it.
    """
    found = search(without_infinite(program), guess, max_steps, rounding)
    point, solved = found.point, found.point.optimal
    if point.sure or bool(solved.all()):
        return Outcome(point, torch.full_like(point.steps, int(Status.CONVERGED)), point.residual)
    status = Status.CONVERGED.where(solved, Status.MAX_STEPS)
    left = torch.nonzero(~solved).flatten()
    part, proof = found.program.take(left), (torch.zeros_like(point.y), torch.zeros_like(point.z))
    blamed, direction = contradiction(part, point.z[left], solutions), torch.zeros_like(part.q)
    infeasible, concave = (blamed != 0).any(1), ~found.convex[left]
    rest = torch.nonzero(~infeasible & ~concave).flatten()
    if len(rest):
        direction[rest] = ray(part.take(rest), solutions)
    unbounded = (direction != 0).any(1)
    verdict = status[left]
    for which, word in ((unbounded, Status.UNBOUNDED), (infeasible, Status.INFEASIBLE), (concave, Status.NONCONVEX)):
        verdict = word.where(which, verdict)
    status[left] = verdict
    for mine, its, word in zip(proof, (blamed, direction), (Status.INFEASIBLE, Status.UNBOUNDED), strict=True):
        mine[left] = torch.where((verdict == word).unsqueeze(1), its, 0.0)
    return Outcome(point, status, point.residual, proof)

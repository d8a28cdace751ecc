"""What a gradient costs, and how wrong it is: the price of an accurate one, and every adjoint beside the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import torchimplicit as ti
from benchmarks.kit.measure import peak_memory, phases
from benchmarks.kit.picture import draw
from benchmarks.kit.table import Table, at_most
from benchmarks.points.cases import Case
from benchmarks.points.contestants import LIMIT
from torchimplicit.adjoint import Adjoint
from torchimplicit.solve import Solver

# Tolerances that are tried for an accurate gradient.
FORWARD = (1e-3, 1e-4, 5e-5, 2e-5, 1e-5, 5e-6, 2e-6, 1e-6, 1e-7, 1e-8, 1e-9)
BACKWARD = (1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5)


@dataclass(frozen=True)
class Way:
    """A solver and an adjoint, on a case."""

    case: Case
    solver: Solver
    adjoint: Adjoint

    def solve(self) -> ti.Solution:
        case = self.case
        return ti.fixed_point(case.cell, case.z0, case.x, solver=self.solver, adjoint=self.adjoint, on_failure="ignore")

    def differentiate(self, solution: ti.Solution) -> list[Tensor]:
        return self.case.gradients(solution.value)

    def error(self, solution: ti.Solution) -> float:
        return self.case.gradient_error(self.differentiate(solution))

    def run(self) -> object:
        return self.differentiate(self.solve())


def accurate(cases: Sequence[tuple[Case, float]], seconds: float) -> Table:
    """The backward pass of an accurate gradient against its forward solve.

    Args:
        cases: each with the largest relative error of its gradients.
        seconds: time for each measurement.
    """
    table = Table(
        "Price of an accurate gradient",
        "Time of the backward pass over that of the forward solve, for a true relative error of all gradients of at "
        "most 1e-4. The conv cell is held to that in float64, and to 1e-2 in float32: a single "
        "ReLU that rounding decides otherwise is an error of about 1e-3. Of the pairs of tolerances, forward and of "
        "GMRES, that give it, the one of the fewest evaluations and products together is taken. Reused: `Broyden` "
        "forward, whose inverse preconditions GMRES (`Implicit(precondition=True)`).",
        ["case", "how", "error wanted", "forward rtol", "GMRES rtol", "reached", "f evaluations", "products",
         "forward ms", "backward ms", "ratio", "bar", "verdict"],
    )  # fmt: skip
    for case, error in cases:
        for name, solver, reuse in (("Anderson", ti.Anderson, False), ("Broyden, reused", ti.Broyden, True)):
            found = _cheapest(case, solver, reuse, error)
            if found is None:
                table.add(case.name, name, f"{error:.0e}", *[""] * 8, "<= 1.2", "not reached")
                continue
            forward, backward = found
            way = _way(case, solver, forward, backward, reuse)
            solution = way.solve()
            reached = way.error(solution)
            solving, differentiating = phases({name: (way.solve, way.differentiate)}, seconds)[name]
            ratio = differentiating / solving
            table.add(
                case.name, name, f"{error:.0e}", f"{forward:.0e}", f"{backward:.0e}", f"{reached:.0e}",
                f"{solution.nfev}", f"{solution.backward.nfev}", f"{solving:.2f}", f"{differentiating:.2f}",
                f"{ratio:.2f}", *at_most(ratio, 1.2),
            )  # fmt: skip
    return table


def _way(case: Case, solver: Callable[..., Solver], forward: float, backward: float, reuse: bool) -> Way:
    adjoint = ti.Implicit(ti.GMRES(rtol=backward, max_steps=LIMIT), precondition=reuse)
    return Way(case, solver(rtol=forward, atol=0, max_steps=LIMIT), adjoint)


def _cheapest(case: Case, solver: Callable[..., Solver], reuse: bool, error: float) -> tuple[float, float] | None:
    """The tolerances, forward and backward, that give the error at the fewest evaluations and products."""
    best, found = float("inf"), None
    rounding = 5 * torch.finfo(case.x.dtype).eps
    for forward in (tol for tol in FORWARD if tol > rounding):
        tightest = _way(case, solver, forward, BACKWARD[-1], reuse)
        if tightest.error(tightest.solve()) > error:
            continue  # however exact the backward solve
        for backward in BACKWARD:
            way = _way(case, solver, forward, backward, reuse)
            solution = way.solve()
            if way.error(solution) > error:
                continue
            cost = solution.nfev + solution.backward.nfev
            if cost < best:
                best, found = cost, (forward, backward)
            break
    return found


def ways(case: Case, rtol: float) -> dict[str, Way]:
    """Every kind of gradient, behind forward solves to one tolerance."""
    anderson = ti.Anderson(rtol=rtol, atol=0, max_steps=LIMIT)
    broyden = ti.Broyden(memory=20, rtol=rtol, atol=0, max_steps=LIMIT)
    exact = {f"Implicit, GMRES {tol:.0e}": ti.Implicit(ti.GMRES(rtol=tol)) for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)}
    series = {f"Implicit, Neumann {terms}": ti.Implicit(ti.Neumann(terms=terms)) for terms in (2, 5, 10, 20)}
    reused = {
        f"Implicit, preconditioned {tol:.0e}": ti.Implicit(ti.GMRES(rtol=tol), precondition=True)
        for tol in (1e-1, 1e-2, 1e-4)
    }
    plain: dict[str, Adjoint] = {
        **exact, **series, "Phantom 1": ti.Phantom(), "Phantom 5": ti.Phantom(steps=5), "Unrolled": ti.Unrolled(),
        "Unrolled, checkpoints": ti.Unrolled(checkpoint=True),
    }  # fmt: skip
    learnt: dict[str, Adjoint] = {**reused, "Shine 0": ti.Shine(), "Shine 5": ti.Shine(refine=5)}
    return {name: Way(case, anderson, adjoint) for name, adjoint in plain.items()} | {
        name: Way(case, broyden, adjoint) for name, adjoint in learnt.items()
    }


def modes(cases: Sequence[Case], seconds: float, rtol: float = 1e-6, picture: Path | None = None) -> Table:
    """Time against error, of every kind of gradient."""
    table = Table(
        "Kinds of gradients",
        f"Forward solves to {rtol:.0e}; the relative error is that of all gradients together, against plain iteration "
        "to convergence in float64. `Shine` and the preconditioned ones run behind `Broyden(memory=20)`, the others "
        "behind `Anderson`. Products are those of the backward solve; memory is the most that a training step holds at "
        "a time. The picture of this table is on the page How to choose.",
        ["case", "gradient", "error", "forward ms", "backward ms", "both ms", "products", "peak MiB"],
    )
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for case in cases:
        some = ways(case, rtol)
        times = phases({name: (way.solve, way.differentiate) for name, way in some.items()}, seconds)
        for name, way in some.items():
            solution = way.solve()
            error = way.error(solution)
            forward, backward = times[name]
            products = "" if solution.backward is None else f"{solution.backward.nfev}"
            table.add(
                case.name, name, f"{error:.1e}", f"{forward:.2f}", f"{backward:.2f}", f"{forward + backward:.2f}",
                products, f"{peak_memory(way.run) / 2**20:.2f}",
            )  # fmt: skip
            points.setdefault(case.name, {})[name] = (backward, error)
    if picture is not None:
        draw(points, picture)
    return table

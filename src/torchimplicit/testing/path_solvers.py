"""What every path solver must keep."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.status import ConvergenceError, Status
from torchimplicit.ode import Checkpointed, Direct, Fixed, PathSolver
from torchimplicit.path.solver import AdaptiveSolver
from torchimplicit.testing.paths import GROWTH, PathCase

ENDS = torch.tensor([0.0, 2.0], dtype=torch.float64)
INSIDE = torch.tensor([0.3, 0.62, 0.85], dtype=torch.float64)
FLOOR = 1e-11  # an error from which on rounding counts


def check_path_solver(solver: PathSolver, case: PathCase = GROWTH, inside: int | None = None) -> None:
    """Holds a path solver to the contract.

    Its order is as stated, at the ends of its steps and inside them; a sample does not notice its batch mates, nor that
    one of them is NaN; a path backward in time comes back; too few steps have their status; gradients of recorded steps
    are those of one graph of them all; it is a plain value.

    Args:
        solver: the solver; its steps are set.
        case: a field that it can take, and the path along it.
        inside: order of the path inside a step, where it is less than that of the method.

    Raises:
        AssertionError: something does not hold.
    """
    for copied in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert copied == solver, "a solver is a plain value"
        assert repr(copied) == repr(solver), "with a readable repr"
    for order, within in ((solver.order, False), (inside or solver.order, True)):
        measured = measured_order(solver, case, within)
        where = "inside its steps" if within else "at the ends of its steps"
        assert order - 0.25 < measured < order + 0.75, f"order {measured:.2f} {where}, {order} is stated"
    _check_independence(solver, case)
    _check_way_back(solver, case)
    _check_limit(solver, case)
    _check_gradients(solver, case)


def of_step(solver: PathSolver, h: float) -> PathSolver:
    """The solver with steps of one size."""
    if not isinstance(solver, AdaptiveSolver):
        return replace(solver, dt=h)
    stages = {"rtol": 1e-5, "atol": 1e-5, "stage_tol": 1e-9, "newton_steps": 50} if hasattr(solver, "stage_tol") else {}
    return replace(solver, control=Fixed(h), **stages)


def measured_order(solver: PathSolver, case: PathCase = GROWTH, inside: bool = False) -> float:
    """The order by two step sizes, the smaller one half of the larger, as small as rounding lets them be."""
    errors, h = [_error(solver, case, 0.25, inside)], 0.25
    while h > 0.04:
        h /= 2
        error = _error(solver, case, h, inside)
        if error < FLOOR and len(errors) > 1:
            break
        errors.append(error)
    return math.log2(errors[-2] / errors[-1])


def _error(solver: PathSolver, case: PathCase, h: float, inside: bool) -> float:
    ts = ENDS
    if inside:
        starts = h * torch.arange(round(2 / h), dtype=torch.float64)
        ts = torch.cat((ts[:1], (starts.unsqueeze(1) + h * INSIDE).flatten(), ts[1:]))
    found = case.solve(ts, solver=of_step(solver, h)).value
    return float((found - case.path(ts, case.start())).abs().max())


def _check_independence(solver: PathSolver, case: PathCase) -> None:
    solver, ts = of_step(solver, 0.1), torch.tensor([0.0, 0.33, 1.0], dtype=torch.float64)
    worse = case.start()
    worse[1] = torch.nan
    good, bad = (case.solve(ts, y0, solver=solver, on_failure="ignore") for y0 in (case.start(), worse))
    others = [0, 2]
    assert torch.equal(good.value[:, others], bad.value[:, others]), "samples depend on their batch mates"
    assert torch.equal(good.report.steps[others], bad.report.steps[others]), "samples depend on their batch mates"
    assert bad.status.tolist() == [0, int(Status.NON_FINITE), 0], bad.report


def _check_way_back(solver: PathSolver, case: PathCase) -> None:
    there = case.solve(ENDS, solver=of_step(solver, 0.05)).value[-1]
    again = case.solve(ENDS.flip(0), there, solver=of_step(solver, 0.05)).value[-1]
    forth = (there - case.path(ENDS, case.start())[-1]).abs().max()
    gap = float((again - case.start()).abs().max())
    assert gap <= 1e-9 + 100 * float(forth), f"a path there and back ends {gap:.1e} from its start"


def _check_limit(solver: PathSolver, case: PathCase) -> None:
    short = replace(of_step(solver, 0.1), max_steps=3)
    solution = case.solve(ENDS, solver=short, on_failure="ignore")
    assert (solution.status == Status.MAX_STEPS).all(), solution.report
    assert (solution.report.steps == 3).all(), solution.report
    try:
        case.solve(ENDS, solver=short)
    except ConvergenceError:
        return
    raise AssertionError("a path that was not integrated to its end must raise by default")


def _check_gradients(solver: PathSolver, case: PathCase) -> None:
    solver, ts = of_step(solver, 0.1), torch.tensor([0.0, 0.33, 1.0], dtype=torch.float64)

    def gradients(adjoint: Any) -> tuple[Tensor, ...]:
        inputs = [case.start().requires_grad_(), ts.clone().requires_grad_()]
        value = case.solve(inputs[1], inputs[0], solver=solver, adjoint=adjoint).value
        return torch.autograd.grad(value.sin().sum(), inputs)

    for found, expected in zip(gradients(Checkpointed(4)), gradients(Direct()), strict=True):
        gap = float((found - expected).abs().max())
        assert gap < 1e-9, f"the gradient of the recorded steps is off by {gap:.1e} from that of one graph of them"

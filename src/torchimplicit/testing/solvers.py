"""What every solver must keep."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.adjoint import Implicit
from torchimplicit.core.status import ConvergenceError, Status
from torchimplicit.core.tree import Layout, norm
from torchimplicit.equations import fixed_point
from torchimplicit.linear import GMRES
from torchimplicit.solve import Solver
from torchimplicit.testing.cases import CASES, Case

TIGHT = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check_solver(
    solver: Solver, cases: list[Case] | None = None, dtypes: tuple[torch.dtype, ...] = tuple(TIGHT)
) -> None:
    """Holds a solver to the contract: values, dtypes, statuses, limits, traces, copies, independence of samples.

    Args:
        solver: the solver; its tolerances are replaced.
        cases: contractions to solve; all of `CASES` by default.
        dtypes: to solve in; bfloat16 skips the complex case.

    Raises:
        AssertionError: something does not hold.
    """
    for case in CASES if cases is None else cases:
        for dtype in dtypes:
            if not (case.name == "complex" and dtype is torch.bfloat16):
                _check_value(solver, case.to(dtype), TIGHT[dtype])
    _check_limits(solver)
    _check_trace(solver)
    for copied in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert copied == solver, "a solver is a plain value"
        assert repr(copied) == repr(solver), "with a readable repr"
    for bad in ("nan", "expanding"):
        check_independence(solver, bad)


def _check_value(solver: Solver, case: Case, tolerance: float) -> None:
    solver = replace(solver, rtol=tolerance, atol=tolerance, max_steps=300)
    solution = case.solve(*case.args, solver=solver, trace=True)
    for leaf, start in zip(pytree.tree_leaves(solution.value), pytree.tree_leaves(case.z0), strict=True):
        assert (leaf.shape, leaf.dtype) == (start.shape, start.dtype), f"{case.name}: value unlike z0"
    layout = Layout(case.z0, case.batch_dims)
    z = layout.flatten(solution.value)
    again = layout.flatten(case.f(solution.value, *case.args))
    residual, scale = norm(z - again) / layout.width**0.5, norm(z) / layout.width**0.5
    assert (residual <= 1.01 * tolerance * (1 + scale)).all(), f"{case.name}: residual {residual} at the returned value"
    assert (solution.status == Status.CONVERGED).all(), f"{case.name}: {solution.report}"
    assert solution.nfev >= int(solution.steps.max()) + 1, f"{case.name}: every step evaluates the function"
    again = case.solve(*case.args, solver=solver, warm_start=solution)
    assert (again.nfev, int(again.steps.max())) == (1, 0), f"{case.name}: at the solution one evaluation is enough"
    same = zip(pytree.tree_leaves(again.value), pytree.tree_leaves(solution.value), strict=True)
    assert all(torch.equal(a, b) for a, b in same), f"{case.name}: at the solution nothing moves"


def _check_limits(solver: Solver) -> None:
    case = CASES[0]
    for steps in (0, 1):
        short = replace(solver, rtol=0.0, atol=1e-14, max_steps=steps)
        solution = case.solve(*case.args, solver=short, on_failure="ignore")
        assert (solution.status == Status.MAX_STEPS).all(), solution.report
        assert (solution.steps == steps).all(), solution.report
        failure = None
        try:
            case.solve(*case.args, solver=short)
        except ConvergenceError as error:
            failure = error
        assert failure is not None, "a solve that did not converge must raise by default"
        assert failure.solution is not None, "the error carries what was reached"
        assert torch.equal(failure.solution.value, solution.value)
        assert "max_steps" in str(failure), "the message says what to try"
    floor = case.solve(*case.args, solver=replace(solver, rtol=0.0, atol=0.0, max_steps=400), on_failure="ignore")
    assert (floor.steps < 400).all(), "a tolerance below the rounding must end at stagnation (or at an exact zero)"
    assert set(floor.status.tolist()) <= {Status.STAGNATED, Status.CONVERGED}
    assert (floor.residual < 1e-13).all(), "stagnation is at the rounding, not above"


def _check_trace(solver: Solver) -> None:
    case = CASES[0]

    def run(steps: int) -> Any:
        options = replace(solver, rtol=0.0, atol=1e-15, max_steps=steps)
        return case.solve(*case.args, solver=options, trace=True, on_failure="ignore")

    runs = [run(steps) for steps in range(1, 8)]
    for shorter, longer in pairwise(runs):
        same = longer.trace[: len(shorter.trace)]
        assert torch.equal(shorter.trace.nan_to_num(-1), same.nan_to_num(-1)), "more steps only add to the trace"
        assert (longer.residual <= shorter.residual).all(), "more steps never return a worse iterate"
    for solution in runs:
        lowest = solution.trace.nan_to_num(torch.inf).amin(0)
        assert torch.allclose(lowest, solution.residual, rtol=1e-5, atol=0.0), "the best iterate is returned"


def check_independence(solver: Solver, bad: str = "nan") -> None:
    """A bad sample changes no bit of its batch mates' values, steps, statuses, residuals and gradients.

    Args:
        solver: the solver.
        bad: "nan" for a sample with a NaN input, "expanding" for one whose map has no attracting fixed point.

    Raises:
        AssertionError: some bit differs from the run with a benign sample in its place.
    """
    case = CASES[0]
    weight, x = case.args
    solver = replace(solver, rtol=1e-9, atol=1e-9, max_steps=60)

    def run(x: Tensor, gain: Tensor) -> tuple:
        x = x.clone().requires_grad_()
        shared = weight.clone().requires_grad_()
        solution = fixed_point(
            _with_gain, case.z0, shared, x, gain, solver=solver, adjoint=Implicit(GMRES(rtol=1e-9)), on_failure="ignore"
        )
        solution.value.sin().sum().backward()
        assert shared.grad is not None
        assert shared.grad.isfinite().all(), "one bad sample must not reach the gradient of a shared weight"
        return solution, x.grad, solution.backward

    ones = torch.ones(3, 1, dtype=torch.float64)
    worse_x, worse_gain = x.clone(), ones.clone()
    if bad == "nan":
        worse_x[1, 2] = torch.nan
    else:
        worse_gain[1] = 1e3
    good, bad_run = run(x, ones), run(worse_x, worse_gain)
    others = [0, 2]
    for healthy, nonfinite in zip(_outcomes(*good), _outcomes(*bad_run), strict=True):
        assert torch.equal(healthy[others], nonfinite[others]), "samples depend on their batch mates"
    if bad == "nan":
        assert bad_run[0].status[1] == Status.NON_FINITE
        assert bad_run[0].value[1].isfinite().all(), "a sample that is not finite is held at its last finite iterate"
        assert (bad_run[1][1] == 0).all(), "and adds nothing to any gradient"


def _with_gain(z: Tensor, weight: Tensor, x: Tensor, gain: Tensor) -> Tensor:
    return torch.where(gain > 1, gain * (z + 1), torch.tanh(z @ weight + x))


def _outcomes(solution: Any, grad: Tensor, backward: Any) -> tuple[Tensor, ...]:
    reports = (solution.value, solution.status, solution.steps, solution.residual)
    return (*reports, grad, backward.status, backward.steps, backward.residual)

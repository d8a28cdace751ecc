"""What every solver that goes down an energy must keep."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim import argmin, least_squares
from torchimplicit.solve import LevenbergMarquardt, Minimiser


def check_minimiser(solver: Minimiser) -> None:
    """Holds a minimiser to the contract, in Rosenbrock's valley.

    It finds the minimum; no step raises the energy; limits, a tolerance of zero and samples that are not finite have
    their status; a sample does not notice its batch mates; the gradient is the minimum's; it is a plain value.

    Args:
        solver: the solver; its tolerances are replaced.

    Raises:
        AssertionError: something does not hold.
    """
    for copied in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert copied == solver, "a solver is a plain value"
        assert repr(copied) == repr(solver), "with a readable repr"
    _check_value(solver)
    _check_descent(solver)
    _check_limits(solver)
    for bad in (torch.nan, 1e4):
        _check_independence(solver, bad)
    _check_gradient(solver)


def terms(z: Tensor, shift: Tensor | None = None) -> Tensor:
    """The terms whose squares are Rosenbrock's function, `(B, 2 n - 2)`; the valley's end is at `shift + 1`."""
    z = z if shift is None else z - shift
    return torch.cat([10 * (z[:, 1:] - z[:, :-1].square()), 1 - z[:, :-1]], dim=1)


def rosenbrock(z: Tensor, shift: Tensor | None = None) -> Tensor:
    """Rosenbrock's function, `(B,)`."""
    return 0.5 * terms(z, shift).square().sum(1)


def minimum(z0: Tensor, *args: Tensor, solver: Minimiser, **options: Any) -> Any:
    """The `Solution`, by the function that takes such a solver."""
    if isinstance(solver, LevenbergMarquardt):
        return least_squares(terms, z0, *args, solver=solver, **options)
    return argmin(rosenbrock, z0, *args, solver=solver, **options)


def _starts(batch: int, width: int = 2) -> Tensor:
    return torch.randn(batch, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _check_value(solver: Minimiser) -> None:
    solution = minimum(_starts(16), solver=replace(solver, rtol=1e-12, atol=1e-12))
    assert solution.report.converged, solution.report
    gap = float((solution.value - 1).abs().max())
    assert gap < 1e-9, f"the minimum is off by {gap:.1e}"
    assert len(set(solution.steps.tolist())) > 1, "every sample stops on its own"


def _check_descent(solver: Minimiser) -> None:
    path = minimum(_starts(8, 4), solver=solver, save_steps=tuple(range(30))).trajectory
    energies = torch.stack([rosenbrock(z) for z in path])
    assert (energies[1:] <= energies[:-1] * (1 + 1e-12)).all(), "a step raises the energy"


def _check_limits(solver: Minimiser) -> None:
    for steps in (0, 1):
        short = replace(solver, rtol=1e-12, atol=1e-12, max_steps=steps)
        solution = minimum(_starts(3), solver=short, on_failure="ignore")
        assert (solution.status == Status.MAX_STEPS).all(), solution.report
        assert (solution.steps == steps).all(), solution.report
    floor = minimum(_starts(8), solver=replace(solver, rtol=0.0, atol=0.0, max_steps=500), on_failure="ignore")
    assert set(floor.status.tolist()) <= {Status.STAGNATED, Status.CONVERGED}, floor.report
    assert (floor.residual < 1e-11).all(), "a tolerance of zero must end at rounding"


def _check_independence(solver: Minimiser, bad: float) -> None:
    solver = replace(solver, rtol=1e-10, atol=1e-10)

    def run(shift: Tensor) -> tuple[Any, Tensor]:
        shift = shift.clone().requires_grad_()
        solution = minimum(_starts(3), shift, solver=solver, on_failure="ignore")
        solution.value.sin().sum().backward()
        assert shift.grad is not None
        return solution, shift.grad

    good = torch.zeros(3, 2, dtype=torch.float64)
    worse = good.clone()
    worse[1] = bad
    (one, grad_one), (two, grad_two) = run(good), run(worse)
    others = [0, 2]
    for name in ("value", "status", "steps", "residual"):
        same = torch.equal(getattr(one, name)[others], getattr(two, name)[others])
        assert same, f"{name}: samples depend on their batch mates"
    assert torch.equal(grad_one[others], grad_two[others]), "gradients depend on batch mates"


def _check_gradient(solver: Minimiser) -> None:
    shift = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    value = minimum(_starts(2), shift, solver=replace(solver, rtol=1e-12, atol=1e-12)).value
    (grad,) = torch.autograd.grad(value.sin().sum(), shift)
    gap = float((grad - value.detach().cos()).abs().max())  # the minimum moves as its shift does
    assert gap < 1e-8, f"the gradient is off by {gap:.1e}"

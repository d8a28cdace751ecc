"""What every adjoint of paths must keep."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torchimplicit.ode import RK4, Direct, PathAdjoint, PathSolution, Tsit5, odeint

TOLERANCE = 1e-7
COARSE, FINE = (Tsit5(rtol=tolerance, atol=tolerance) for tolerance in (TOLERANCE, 1e-11))


def check_path_adjoint(adjoint: PathAdjoint, exact: bool = True, second: bool = True) -> None:
    """Holds an adjoint of paths to the contract.

    Each is right to a hundred times the solver's tolerance. An exact one passes `gradcheck` and `gradgradcheck` for the
    steps that it takes; any other reports how its backward solve went. None changes the value, and none lets a sample
    that is not finite into a shared gradient.

    Args:
        adjoint: the adjoint.
        exact: hold it to the exact gradient of the steps that were taken.
        second: also to exact second derivatives.

    Raises:
        AssertionError: something does not hold; `gradcheck` raises its own error.
    """
    for copied in (copy.deepcopy(adjoint), pickle.loads(pickle.dumps(adjoint))):
        assert copied == adjoint, "an adjoint is a plain value"
    inputs = y0, ts, W = _inputs()
    with torch.no_grad():
        plain = _solve(adjoint, y0, ts, W).value
    solution = _solve(adjoint, y0, ts, W)
    assert torch.allclose(solution.value, plain, 1e-12, 1e-12), "the adjoint changes the value"
    found = torch.autograd.grad(solution.value.sin().sum(), inputs)
    expected = torch.autograd.grad(_solve(Direct(), y0, ts, W, solver=FINE).value.sin().sum(), inputs)
    # By a time, one takes the field's slope and another that of the path inside a step.
    bounds = {"start": 100 * TOLERANCE, "times": 1e-3, "arguments": 100 * TOLERANCE}
    for (name, bound), ours, theirs in zip(bounds.items(), found, expected, strict=True):
        off = float((ours - theirs).norm() / theirs.norm())
        assert off < bound, f"the gradient of the {name} is off by {off:.1e} of its size"
    if not exact:
        assert solution.backward is not None, "a backward solve is reported"
        assert solution.backward.converged, solution.backward
    else:
        _check_differences(adjoint, second)
    _check_quarantine(adjoint)


def _inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    y0, W = (torch.randn(3, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    ts = torch.tensor([0.0, 0.4, 1.1, 2.0], dtype=torch.float64)
    return [each.requires_grad_() for each in (y0, ts, 0.5 * W)]


def _field(t: Tensor, y: Tensor, W: Tensor) -> Tensor:
    return torch.tanh(y @ W) * torch.cos(t)


def _solve(adjoint: PathAdjoint, y0: Tensor, ts: Tensor, W: Tensor, **options: Any) -> PathSolution:
    return odeint(_field, y0, ts, W, adjoint=adjoint, **{"solver": COARSE, **options})


def _check_differences(adjoint: PathAdjoint, second: bool) -> None:
    inputs = _inputs()

    def run(y0: Tensor, ts: Tensor, W: Tensor) -> Tensor:
        return odeint(_field, y0, ts, W, solver=RK4(), adjoint=adjoint).value

    assert gradcheck(run, inputs, atol=1e-8, rtol=1e-7, fast_mode=True)
    assert not second or gradgradcheck(run, inputs, atol=1e-7, rtol=1e-6, fast_mode=True)


def _check_quarantine(adjoint: PathAdjoint) -> None:
    grads = []
    for bad in (0.0, torch.nan):
        y0, ts, W = _inputs()
        y0 = torch.where(torch.tensor([[False], [True], [False]]), y0.detach() * 0 + bad, y0.detach())
        solution = _solve(adjoint, y0, ts, W, on_failure="ignore")
        grads += torch.autograd.grad(solution.value[:, [0, 2]].sin().sum(), W)
    gap = float((grads[0] - grads[1]).abs().max())
    assert gap < 1e-12, f"a sample that is not finite changes the gradient of a shared weight by {gap:.1e}"

"""What every solver of stochastic paths must keep."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.status import ConvergenceError, Status
from torchimplicit.sde import SRA1, Brownian, Checkpointed, Direct, Heun, LogODE, SDESolver, sdeint
from torchimplicit.sde.diffusion import NoiseKind

D = torch.float64
PATHS, LONGEST, LEVELS, FINEST = 400, 4, 4, 10  # steps of 2^-4 to 2^-7, against those of 2^-10
UNIT = torch.tensor([0.0, 1.0], dtype=D)
TIMES = torch.tensor([0.0, 0.25, 1.0], dtype=D)
TURN = torch.tensor([[0.0, 0.8], [-0.3, 0.2]], dtype=D)
MIX = torch.tensor([[0.5, 0.2], [0.1, -0.4]], dtype=D)


@dataclass(frozen=True)
class SDECase:
    """An equation of states `(B, 2)` in both calculi, `drift(t, y, a)` and `diffusion(t, y, a)` of a number `a`, 1.

    Attributes:
        noise: of which kind.
        ito: the drift of the Ito equation.
        stratonovich: that of the Stratonovich equation of the same process.
        diffusion: of both.
        end: the states at time 1 from `y0` `(B, 2)` and the noise until then, `(B, m)`; None where fine steps tell.
    """

    noise: NoiseKind
    ito: Callable
    stratonovich: Callable
    diffusion: Callable
    end: Callable[[Tensor, Tensor], Tensor] | None = None

    def solve(self, solver: SDESolver, y0: Tensor, ts: Tensor = UNIT, a: Any = 1.0, **options: Any) -> Any:
        """The `PathSolution` in the solver's calculus."""
        drift = self.ito if solver.calculus == "ito" else self.stratonovich
        options = {"noise": self.noise, "calculus": solver.calculus, "brownian": 3, **options}
        return sdeint(drift, self.diffusion, y0, ts, a, solver=solver, **options)


def _columns(t: Tensor, y: Tensor, a: Any) -> Tensor:
    return a * torch.stack((y @ TURN.T, y @ MIX.T), 2)


SDE_CASES = {
    "diagonal": SDECase(
        "diagonal", lambda t, y, a: 0.3 * y, lambda t, y, a: (0.3 - 0.18 * a**2) * y, lambda t, y, a: 0.6 * a * y,
        lambda y, w: y * torch.exp(0.12 + 0.6 * w),
    ),
    "scalar": SDECase(
        "scalar", lambda t, y, a: 0.5 * a**2 * y @ (TURN @ TURN).T, lambda t, y, a: 0 * y,
        lambda t, y, a: a * (y @ TURN.T).unsqueeze(2),
        lambda y, w: (torch.linalg.matrix_exp(TURN * w.unsqueeze(2)) @ y.unsqueeze(2)).squeeze(2),
    ),
    "additive": SDECase(
        "additive", lambda t, y, a: (4 * y).sin(), lambda t, y, a: (4 * y).sin(),
        lambda t, y, a: 2 * a * (1 + 0.5 * torch.sin(3 * t)).unsqueeze(2) * MIX,
    ),
    "commuting": SDECase(
        "general", lambda t, y, a: 0.5 * a**2 * y * MIX.square().sum(1), lambda t, y, a: 0 * y,
        lambda t, y, a: a * y.unsqueeze(2) * MIX, lambda y, w: y * torch.exp(w @ MIX.T),
    ),
    "general": SDECase(
        "general", lambda t, y, a: 0.5 * a**2 * y @ (TURN @ TURN + MIX @ MIX).T, lambda t, y, a: 0 * y, _columns
    ),
    "diagonal that sees others": SDECase(
        "diagonal", lambda t, y, a: -0.5 * y, lambda t, y, a: -0.5 * y, lambda t, y, a: a * (0.6 + y.roll(1, 1).sin())
    ),
}  # fmt: skip


def check_sde_solver(solver: SDESolver) -> None:
    """Holds a solver of stochastic paths to the contract.

    For every noise that it is for: it converges to the process of its calculus, at the order that it states for the
    structure, which the report repeats; a path is its seed's, to the bit, alone and among others, of which one is NaN;
    gradients of recorded steps are those of one graph of them all, and those of finite differences. Too few steps have
    their status, and it is a plain value.

    Args:
        solver: the solver; its steps are set.

    Raises:
        AssertionError: something does not hold.
    """
    for copied in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert copied == solver, "a solver is a plain value"
        assert repr(copied) == repr(solver), "with a readable repr"
    cases = {name: case for name, case in SDE_CASES.items() if case.noise in solver.kinds}
    assert cases, f"kinds: got {solver.kinds}, expected some of 'diagonal', 'scalar', 'additive', 'general'"
    for name, case in cases.items():
        _check_order(solver, name, case)
        _check_paths(of_size(solver, 0.125), case)
        _check_gradients(of_size(solver, 0.125), case)
    _check_limit(of_size(solver, 0.125), next(iter(cases.values())))


def of_size(solver: SDESolver, h: float) -> SDESolver:
    """The solver with steps of one size."""
    return replace(solver, dt=h)


def _start(count: int) -> Tensor:
    return torch.tensor([0.8, -0.5], dtype=D) + 0.1 * torch.arange(count, dtype=D).remainder(5).unsqueeze(1)


def _check_order(solver: SDESolver, name: str, case: SDECase) -> None:
    y0, steps = _start(PATHS), 2.0**-LONGEST
    source = Brownian(seed=5, base=2.0**-FINEST if solver.levy else steps)
    if case.end is None:
        fine: SDESolver = LogODE() if solver.levy else SRA1() if case.noise == "additive" else Heun(dt=1.0)
        expected = case.solve(of_size(fine, 2.0**-FINEST), y0, brownian=source).value[-1]
    else:
        noise = source.bind(y0.new_empty(PATHS, 1 if case.noise == "scalar" else 2))
        w = torch.stack([noise.increment(number, steps).W for number in range(2**LONGEST)]).sum(0)
        expected = case.end(y0, w)
    errors = []
    for level in range(LEVELS):
        found = case.solve(of_size(solver, steps / 2**level), y0, brownian=source)
        errors.append((found.value[-1] - expected).square().sum(1).mean().sqrt())
    level = torch.arange(LEVELS, dtype=D) - (LEVELS - 1) / 2
    order = float(-(level * torch.stack(errors).log2()).sum() / level.square().sum())
    stated = found.report.strong_order
    assert stated is not None
    assert stated - 0.15 < order < stated + 0.4, f"strong order {order:.2f} of noise {name}, {stated} is stated"


def _check_paths(solver: SDESolver, case: SDECase) -> None:
    y0, seeds = _start(4), torch.tensor([7, 1, 3, 7])
    whole = case.solve(solver, y0, TIMES, brownian=seeds).value
    again, alone = (case.solve(solver, y0[rows], TIMES, brownian=seeds[rows]).value for rows in ([0, 1, 2, 3], [2]))
    assert torch.equal(whole, again), "a seed does not repeat its path"
    assert torch.allclose(whole[:, 2], alone[:, 0], rtol=1e-13, atol=1e-13), "a path depends on batch mates"
    worse = y0.clone()
    worse[1] = torch.nan
    bad, others = case.solve(solver, worse, TIMES, brownian=seeds, on_failure="ignore"), [0, 2, 3]
    assert torch.equal(whole[:, others], bad.value[:, others]), "samples depend on their batch mates"
    assert bad.status.tolist() == [0, int(Status.NON_FINITE), 0, 0], bad.report


def _check_gradients(solver: SDESolver, case: SDECase) -> None:
    inputs = (_start(2).requires_grad_(), torch.tensor(1.0, dtype=D, requires_grad=True))

    def end(y0: Tensor, a: Tensor, adjoint: Any) -> Tensor:
        return case.solve(solver, y0, TIMES, a, adjoint=adjoint).value[-1]

    found = [torch.autograd.grad(end(*inputs, adjoint).sin().sum(), inputs) for adjoint in (Checkpointed(2), Direct())]
    for one, other in zip(*found, strict=True):
        gap = float((one - other).abs().max())
        assert gap < 1e-10, f"the gradient of the recorded steps is off by {gap:.1e} from that of one graph of them"
    assert torch.autograd.gradcheck(lambda y0, a: end(y0, a, Direct()), inputs, fast_mode=True)


def _check_limit(solver: SDESolver, case: SDECase) -> None:
    short = replace(solver, max_steps=3)
    solution = case.solve(short, _start(2), on_failure="ignore")
    assert (solution.status == Status.MAX_STEPS).all(), solution.report
    assert (solution.report.steps == 3).all(), solution.report
    try:
        case.solve(short, _start(2))
    except ConvergenceError:
        return
    raise AssertionError("a path that was not integrated to its end must raise by default")

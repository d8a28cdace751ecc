"""The libraries behind one face: this one, torchdeq, and a plain loop of as many evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import torchimplicit as ti
from benchmarks.kit.measure import Run, interleaved
from benchmarks.points.cases import Case, count_calls

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in its docstrings
    from torchdeq import get_deq

SOLVERS = ("anderson", "broyden", "fixed_point_iter")
CAPS = (40, 80, 160, 320)  # torchdeq's limits of steps, tried in turn: it allocates and fills up to them
LIMIT = 400


@dataclass(frozen=True)
class Contestant:
    """One way to solve a case.

    Attributes:
        name: the library, and its solvers where there is a choice.
        forward: solves, without grad; returns the value.
        both: solves and differentiates; returns the value and the gradients.
        solvers: what to call the solvers of either.
        products: vector-Jacobian products that its backward solve takes, where it says.
        evaluations: of `f` in `forward`, where they cannot be counted at the cell.
    """

    name: str
    forward: Callable[[], Tensor]
    both: Callable[[], tuple[Tensor, list[Tensor]]]
    solvers: dict[str, str] = field(default_factory=dict)
    products: Callable[[], int] = int
    evaluations: Callable[[], int] = int


def ours(case: Case, tol: float, solver: type[ti.Anderson | ti.Broyden] = ti.Anderson) -> Contestant:
    """This library with its default methods, or with Broyden's forward. What does not converge raises."""
    forward_solver = solver(rtol=tol, atol=0, max_steps=LIMIT)
    adjoint = ti.Implicit(ti.GMRES(rtol=tol, max_steps=LIMIT))

    def solve() -> ti.Solution:
        return ti.fixed_point(case.cell, case.z0, case.x, solver=forward_solver, adjoint=adjoint)

    def forward() -> Tensor:
        with torch.no_grad():
            return solve().value

    def both() -> tuple[Tensor, list[Tensor]]:
        value = solve().value
        return value, case.gradients(value)

    def products() -> int:
        solution = solve()
        case.gradients(solution.value)
        return solution.backward.nfev

    name = solver.__name__.lower()
    return Contestant(f"torchimplicit {name}", forward, both, {"forward": name, "both": name}, products)


def torchdeq(
    case: Case,
    tol: float,
    solver: str,
    backward: str,
    caps: tuple[int, int],
    writer: Callable[[Any], None] | None = None,
) -> Contestant:
    """The peer with implicit differentiation, stopping on the same relative residuals.

    Args:
        case: the case.
        tol: tolerance, forward and backward.
        solver: its forward solver.
        backward: its backward solver.
        caps: its limits of steps, forward and backward.
        writer: gets the backward solver's statistics.
    """
    deq = get_deq(
        core="sliced", ift=True, f_solver=solver, b_solver=backward, f_tol=tol, b_tol=tol, f_stop_mode="rel",
        b_stop_mode="rel", f_max_iter=caps[0], b_max_iter=caps[1], eval_f_max_iter=caps[0],
    )  # fmt: skip

    def f(z: Tensor) -> Tensor:
        return case.cell(z, case.x)

    def forward() -> Tensor:
        with torch.no_grad():
            return deq.eval()(f, case.z0)[0][-1]  # eval mode spares it one evaluation

    def both() -> tuple[Tensor, list[Tensor]]:
        value = deq.train()(f, case.z0, backward_writer=writer)[0][-1]
        return value, case.gradients(value)

    short = {name: name.replace("fixed_point_iter", "picard") for name in SOLVERS}
    solvers = {"forward": short[solver], "both": f"{short[solver]} / {short[backward]}"}
    return Contestant(f"torchdeq {solvers['both']}", forward, both, solvers)


def best_torchdeq(case: Case, tol: float, seconds: float) -> list[Contestant]:
    """The peer with its Anderson forward, with its fastest forward solver if that is another one, and with Broyden's.

    Of its solvers that meet the tolerance, the fastest in a short trial is taken; the backward one is tried behind
    Anderson forward. Broyden's is left out where it does not arrive.

    Args:
        case: the case.
        tol: tolerance, forward and backward.
        seconds: time for each of the two trials.
    """
    caps = {solver: forward_cap(case, tol, solver) for solver in SOLVERS}
    first = SOLVERS[0]
    trial: dict[str, Run] = {
        name: torchdeq(case, tol, name, first, (cap, 1)).forward for name, cap in caps.items() if cap
    }
    fastest = _fastest(trial, seconds)
    cap = caps[first] or LIMIT
    backward_caps = {name: _backward_cap(case, tol, name, cap) for name in SOLVERS}
    trial = {
        name: torchdeq(case, tol, first, name, (cap, limit)).both for name, limit in backward_caps.items() if limit
    }
    backward = _fastest(trial, seconds)
    limit = backward_caps[backward] or LIMIT
    chosen = dict.fromkeys((first, fastest, *(["broyden"] if caps["broyden"] else [])))
    return [torchdeq(case, tol, name, backward, (caps[name] or LIMIT, limit)) for name in chosen]


def _fastest(runs: dict[str, Run], seconds: float) -> str:
    times = interleaved(runs, seconds)
    return min(times, key=times.__getitem__, default=SOLVERS[0])


def forward_cap(case: Case, tol: float, solver: str) -> int | None:
    """The smallest limit of steps with which torchdeq's forward solver arrives."""
    for cap in CAPS:
        if case.residual(torchdeq(case, tol, solver, SOLVERS[0], (cap, 1)).forward()) <= tol:
            return cap
    return None


def _backward_cap(case: Case, tol: float, backward: str, cap: int) -> int | None:
    """The same for its backward solver, by its own statistics."""
    for limit in CAPS:
        reports: list[Any] = []
        torchdeq(case, tol, SOLVERS[0], backward, (cap, limit), reports.append).both()
        if float(reports[-1]["rel_lowest"].max()) <= tol:
            return limit
    return None


def plain(case: Case, contestant: Contestant) -> Contestant:
    """The floor: a bare loop of `f`, and of vector-Jacobian products, as many as one takes; solves nothing."""
    cell, x = case.cell, case.x
    evaluations, products = count_calls(cell, contestant.forward), contestant.products()

    def forward() -> Tensor:
        with torch.no_grad():
            return loop(cell, case.z0, x, evaluations)

    def both() -> tuple[Tensor, list[Tensor]]:
        z = forward().requires_grad_()
        value, u = cell(z, x), case.cotangent
        for _ in range(products):
            u = torch.autograd.grad(value, z, u, retain_graph=True)[0]
        return value, list(torch.autograd.grad(value, case.leaves, u))

    return Contestant(f"plain loop of {contestant.name}", forward, both)


def loop(cell: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor, evaluations: int) -> Tensor:
    """As many evaluations, nothing else."""
    for _ in range(evaluations):
        z = cell(z, x)
    return z

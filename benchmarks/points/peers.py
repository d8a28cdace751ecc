"""Peers outside of the family of deep equilibrium libraries: jaxopt and xitorch, where they are installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import torchimplicit as ti
from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table
from benchmarks.points.cases import Case, count_calls
from benchmarks.points.contestants import LIMIT, Contestant, best_torchdeq, ours

SHRINK = 0.7  # of a tolerance on the whole batch, until every sample meets its own


def peers(cases: list[Case], tolerances: tuple[float, ...], seconds: float) -> Table:
    """Forward, and forward with backward, on a tanh cell."""
    table = Table(
        "Other libraries",
        "One thread each; jaxopt is compiled (`jit`, and its compilation not timed), the others are not. jaxopt and "
        "xitorch see one system of all samples and stop on its norm: their tolerance is tightened (by factors of "
        f"{SHRINK}) until every sample meets the one asked for. jaxopt: Anderson (history 5, ridge as it comes; no "
        "Broyden) and its default backward solver, conjugate gradients on the normal equations. xitorch: broyden1 "
        "started at the identity (as it starts on its own it does not converge here) without line search, and "
        "its default backward solver; its memory is not limited.",
        ["case", "tol", "library", "forward ms", "fwd + bwd ms", "f evaluations", "true residual", "gradient error"],
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in cases:
        for tol in tolerances:
            contestants = [ours(case, tol), ours(case, tol, ti.Broyden), best_torchdeq(case, tol, seconds / 4)[0]]
            absent = []
            for name, make in (("jaxopt", jaxopt), ("xitorch", xitorch)):
                try:
                    contestants.append(make(case, tol))
                except ImportError as error:
                    absent.append((name, f"not installed: {error}"))
            times = [
                interleaved({each.name: getattr(each, what) for each in contestants}, seconds)
                for what in ("forward", "both")
            ]
            for each in contestants:
                value, gradients = each.both()
                evaluations = each.evaluations() or count_calls(case.cell, each.forward)
                table.add(
                    case.name, f"{tol:.0e}", each.name, *(f"{some[each.name]:.2f}" for some in times),
                    f"{evaluations}", f"{case.residual(value):.0e}", f"{case.gradient_error(gradients):.0e}",
                )  # fmt: skip
            for name, reason in absent:
                table.add(case.name, f"{tol:.0e}", name, reason, "", "", "", "")
    torch.set_num_threads(before)
    return table


def tightened(case: Case, tol: float, make: Callable[[float], Contestant]) -> Contestant:
    """A contestant whose tolerance is that of the whole batch, such that every sample meets `tol`."""
    absolute = tol * float(ours(case, tol).forward().norm())
    for _ in range(10):
        contestant = make(absolute)
        if case.residual(contestant.forward()) <= tol:
            break
        absolute *= SHRINK
    return contestant


def jaxopt(case: Case, tol: float) -> Contestant:
    """The Anderson acceleration and implicit differentiation of jaxopt, on a tanh cell.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    # Read when JAX starts: its own threads would share the cores with those of torch that have not yet gone to sleep.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is no longer maintained, says its import
        import jax
        import jaxopt as library

    def f(z: jax.Array, x: jax.Array, W: jax.Array) -> jax.Array:
        return jax.numpy.tanh(z @ W + x)

    z0, *inputs, g = (jax.numpy.asarray(t.detach().numpy()) for t in (case.z0, *case.leaves, case.cotangent))

    def make(absolute: float) -> Contestant:
        solve = library.linear_solve.solve_normal_cg
        solver = library.AndersonAcceleration(
            f, tol=absolute, maxiter=LIMIT, implicit_diff_solve=lambda A, b: solve(A, b, tol=tol, maxiter=LIMIT)
        )
        run = jax.jit(lambda z, *leaves: solver.run(z, *leaves))

        def pull(z: jax.Array, *leaves: jax.Array) -> tuple:
            value, back = jax.vjp(lambda *leaves: solver.run(z, *leaves).params, *leaves)
            return value, *back(g)

        pull = jax.jit(pull)

        def forward() -> Tensor:
            return torch.from_numpy(jax.device_get(run(z0, *inputs).params).copy())

        def both() -> tuple[Tensor, list[Tensor]]:
            value, *gradients = (torch.from_numpy(array.copy()) for array in jax.device_get(pull(z0, *inputs)))
            return value, gradients

        def evaluations() -> int:
            return int(run(z0, *inputs).state.num_fun_eval)

        return Contestant("jaxopt anderson", forward, both, evaluations=evaluations)

    return tightened(case, tol, make)


def xitorch(case: Case, tol: float) -> Contestant:
    """The Broyden method and implicit differentiation of xitorch, on a tanh cell.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    from xitorch.optimize import equilibrium

    def f(z: Tensor, x: Tensor, W: Tensor) -> Tensor:
        return torch.tanh(z @ W + x)

    def make(absolute: float) -> Contestant:
        huge = 1e9  # the other criteria are met
        options = {"method": "broyden1", "alpha": -1.0, "line_search": False, "maxiter": LIMIT, "f_tol": absolute,
                   "f_rtol": huge, "x_tol": huge, "x_rtol": huge}  # fmt: skip
        backward = {"rtol": tol}
        calls = 0

        def counted(z: Tensor, x: Tensor, W: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return f(z, x, W)

        def solve(function: Callable[..., Tensor] = f) -> Tensor:
            return equilibrium(function, case.z0, case.leaves, bck_options=backward, **options)

        def forward() -> Tensor:
            with torch.no_grad():
                return solve()

        def both() -> tuple[Tensor, list[Tensor]]:
            value = solve()
            return value, case.gradients(value)

        def evaluations() -> int:
            nonlocal calls
            calls = 0
            with torch.no_grad():
                solve(counted)
            return calls

        return Contestant("xitorch broyden1", forward, both, evaluations=evaluations)

    return tightened(case, tol, make)

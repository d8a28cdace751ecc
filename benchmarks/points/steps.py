"""What a solver's step costs beyond the function, in time and in memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

import torchimplicit as ti
from benchmarks.kit.measure import Run, interleaved, now, peak_memory, slopes
from benchmarks.kit.table import Table, at_most
from benchmarks.points.cases import Case, TanhCell, count_calls
from benchmarks.points.contestants import forward_cap, get_deq, loop, ours, torchdeq

CLOCKS = (
    (1, "CPU time, 1 thread", time.thread_time),
    (1, "wall, 1 thread", now),
    (2, "wall, 2 threads", now),
)
STEPS = (6, 15)  # of the slope: the window is full, and a whole number of the periods that acceleration comes in


def overhead(batch: int, width: int, seconds: float) -> Table:
    """Time per step beyond `f`, on small states."""
    low, high = STEPS
    table = Table(
        "Overhead per step",
        f"Microseconds a step on tanh {batch} x {width}: the slope of the time over the number of steps, from {low} to "
        f"{high}, at a tolerance of zero. The ratio is of what is left when `f` itself is taken off. CPU time is that "
        "of the one thread; it holds on a busy machine too.",
        ["solver", "clock", "f alone", "torchimplicit", "torchdeq", "beyond f: ours", "torchdeq's", "ratio", "bar",
         "verdict"],
    )  # fmt: skip
    torch.manual_seed(0)
    cell, x = TanhCell(width), torch.randn(batch, width)
    z0, before = torch.zeros_like(x), torch.get_num_threads()

    def us(solver: ti.Anderson | ti.Broyden, k: int) -> Run:
        chosen = replace(solver, max_steps=k)
        return torch.no_grad()(lambda: ti.fixed_point(cell, z0, x, solver=chosen, on_failure="ignore"))

    def peer(solver: str, k: int) -> Run:
        deq = get_deq(f_solver=solver, f_tol=0.0, f_stop_mode="rel", f_max_iter=k, eval_f_max_iter=k).eval()
        return torch.no_grad()(lambda: deq(lambda z: cell(z, x), z0))

    def floor(k: int) -> Run:
        return torch.no_grad()(lambda: loop(cell, z0, x, k))

    endless = {"rtol": 0.0, "atol": 0.0}
    for label, name, solver in (
        ("anderson", "anderson", ti.Anderson(**endless)),
        ("broyden", "broyden", ti.Broyden(**endless)),
        ("broyden, compiled", "broyden", ti.Broyden(compile=True, **endless)),
    ):
        if "compiled" in label and not shutil.which("c++"):
            continue
        runs: dict[str, Callable[[int], Run]] = {"f": floor, "us": partial(us, solver), "peer": partial(peer, name)}
        for make in runs.values():
            taken = count_calls(cell, make(high)) - count_calls(cell, make(low))
            assert taken == high - low, f"{taken} steps were taken, not {high - low}: they stopped before"
        for threads, reading, clock in CLOCKS:
            torch.set_num_threads(threads)
            step = slopes(runs, STEPS, seconds, clock)
            beyond = step["us"] - step["f"], step["peer"] - step["f"]
            ratio = beyond[0] / beyond[1]
            shown = (step["f"], step["us"], step["peer"], *beyond)
            verdict = at_most(ratio, 0.2) if min(shown) > 0 else ("<= 0.2", "too noisy")
            table.add(label, reading, *(f"{time_:.0f}" for time_ in shown), f"{ratio:.2f}", *verdict)
    torch.set_num_threads(before)
    return table


def large(case: Case, tolerances: Sequence[float], seconds: float) -> Table:
    """Time of a whole solve against that of its evaluations, on large states."""
    table = Table(
        "Overhead on the large case",
        f"Forward on {case.name}: the time of a solve over that of as many evaluations in a bare loop, by each "
        "solver's own count.",
        ["tol", "solver", "solve ms", "f evaluations", "bare loop ms", "ratio", "bar", "verdict", "true residual"],
    )
    for tol in tolerances:
        contestants = [ours(case, tol, solver) for solver in (ti.Anderson, ti.Broyden)]
        for name in ("anderson", "broyden"):
            cap = forward_cap(case, tol, name)
            if cap:
                contestants.append(torchdeq(case, tol, name, name, (cap, 1)))
        counts = {each.name: count_calls(case.cell, each.forward) for each in contestants}
        bare = {count: torch.no_grad()(partial(loop, case.cell, case.z0, case.x, count)) for count in counts.values()}
        runs: dict[str, Run] = {each.name: each.forward for each in contestants}
        times = interleaved(runs | {str(count): run for count, run in bare.items()}, seconds)
        for each in contestants:
            count = counts[each.name]
            ratio = times[each.name] / times[str(count)]
            verdict = at_most(ratio, 1.25) if each.name.startswith("torchimplicit") else ("", "")
            table.add(
                f"{tol:.0e}", f"{each.name.split()[0]} {each.solvers['forward']}", f"{times[each.name]:.1f}",
                f"{count}", f"{times[str(count)]:.1f}", f"{ratio:.2f}", *verdict,
                f"{case.residual(each.forward()):.0e}",
            )  # fmt: skip
    return table


def memory(batch: int, width: int, steps: tuple[int, int]) -> Table:
    """Peak memory of a training step against the number of solver steps."""
    low, high = steps
    table = Table(
        "Peak memory of a training step",
        f"MiB allocated at most at a time, forward and backward of tanh {batch} x {width}, after {low} and after "
        f"{high} solver steps (tolerance zero), by the allocator's own account. Backpropagation through the steps "
        "(Unrolled) and torchdeq stand beside.",
        ["how", f"{low} steps", f"{high} steps", "ratio", "bar", "verdict"],
    )
    torch.manual_seed(0)
    cell, x = TanhCell(width, radius=0.99), 0.1 * torch.randn(batch, width)  # so slow that no step is left out
    z0, leaves = torch.zeros_like(x), list(cell.parameters())

    def us(adjoint: ti.Implicit | ti.Unrolled, k: int) -> Run:
        solver = ti.Anderson(rtol=0, atol=0, max_steps=k)

        def run() -> None:
            solution = ti.fixed_point(cell, z0, x, solver=solver, adjoint=adjoint, on_failure="ignore")
            assert int(solution.steps.min()) == k, "a sample stopped before"
            torch.autograd.grad(solution.value.sum(), leaves)

        return run

    def peer(k: int) -> Run:
        deq = get_deq(ift=True, f_solver="anderson", f_tol=0.0, f_max_iter=k, b_solver="anderson", b_max_iter=10)
        return lambda: torch.autograd.grad(deq(lambda z: cell(z, x), z0)[0][-1].sum(), leaves)

    for name, make, bar in (
        ("torchimplicit, Implicit", lambda k: us(ti.Implicit(), k), True),
        ("torchimplicit, Unrolled", lambda k: us(ti.Unrolled(), k), False),
        ("torchdeq, ift", peer, False),
    ):
        peaks = [peak_memory(make(k)) for k in steps]
        ratio = peaks[1] / peaks[0]
        verdict = at_most(ratio, 1.05) if bar else ("", "")
        table.add(name, *(f"{peak / 2**20:.2f}" for peak in peaks), f"{ratio:.2f}", *verdict)
    return table

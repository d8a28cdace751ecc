"""Equilibrium models against torchdeq: speed, evaluations, overhead, memory.

python benchmarks/deq.py              everything; rewrites benchmarks/RESULTS.md
python benchmarks/deq.py --quick      tiny sizes, seconds, writes nothing
python benchmarks/deq.py --only overhead memory      some of it, writes nothing
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from cases import Case, LinearCell, TanhCell, conv_case, count_calls, tanh_case
from contestants import LIMIT, SOLVERS, Contestant, best_torchdeq, get_deq, loop, ours, plain
from measure import Run, interleaved, peak_memory, slopes
from table import Table, at_least, at_most, write_page
from torch import Tensor, nn

import torchimplicit as ti

LABELS = {"forward": "forward", "both": "fwd + bwd"}
STEPS = (6, 15)  # of the slope: the window is full, and a whole number of the periods that acceleration comes in


def speed(cases: Sequence[Case], seconds: float) -> Table:
    """Forward, and forward with backward, to the same relative residual."""
    table = Table(
        "Speed",
        "Both stop on `|f(z) - z| <= tol |z|` in every sample; residuals and gradients are then checked in float64 "
        "(gradients against plain iteration to convergence). Tanh cells have weights of spectral radius 0.9, the conv "
        "cell is that of the implicit layers tutorial at initialisation. The first row of a case has torchdeq with "
        "Anderson forward and whichever backward solver is fastest there (named); a second row, where there is one, "
        "has whichever forward solver is (picard: its `fixed_point_iter`). Of two numbers in a cell, torchimplicit's "
        "is the first. `plain` is a bare loop of as many evaluations and vector-Jacobian products as torchimplicit "
        "took: the floor.",
        ["case", "pass", "tol", "torchdeq's solvers", "torchimplicit ms", "torchdeq ms", "plain ms", "ratio", "bar",
         "verdict", "f evaluations", "true residuals", "gradient errors"],
    )  # fmt: skip
    for case in cases:
        for tol, bars in case.bars.items():
            us, floor = ours(case, tol), plain(case, tol)
            peers = best_torchdeq(case, tol, seconds / 4)
            for name, bar in zip(("forward", "both"), bars, strict=True):
                runs: dict[str, Run] = {each.name: getattr(each, name) for each in (us, *peers, floor)}
                times = interleaved(runs, seconds)
                for peer in peers:
                    ratio = times[peer.name] / times[us.name]
                    verdict = at_least(ratio, bar) if peer is peers[0] else ("", "")
                    table.add(
                        case.name, LABELS[name], f"{tol:.0e}", peer.solvers[name],
                        *(f"{times[each.name]:.2f}" for each in (us, peer, floor)), f"{ratio:.2f}", *verdict,
                        *accuracy(case, name, us, peer),
                    )  # fmt: skip
    return table


def accuracy(case: Case, name: str, us: Contestant, peer: Contestant) -> tuple[str, str, str]:
    """Evaluations, true residuals and gradient errors of the two, ours first."""
    pair = (us, peer)
    calls = " / ".join(str(count_calls(case.cell, getattr(each, name))) for each in pair)
    if name == "forward":
        return calls, " / ".join(f"{case.residual(each.forward()):.0e}" for each in pair), ""
    results = [each.both() for each in pair]
    residuals = " / ".join(f"{case.residual(value):.0e}" for value, _ in results)
    return calls, residuals, " / ".join(f"{case.gradient_error(gradients):.0e}" for _, gradients in results)


def evaluations(width: int, seeds: int, tol: float = 1e-9) -> Table:
    """Evaluations of `f` to a tight tolerance, by the default Anderson of either."""
    table = Table(
        "Evaluations",
        f"Of `f`, to a relative residual of {tol:.0e} in float64, from zero; {width} unknowns, 8 samples, medians over "
        f"{seeds} random maps; limit {LIMIT}. The ratio and the bar compare the two Anderson accelerations; torchdeq's "
        "other solvers stand beside.",
        ["map", "torchimplicit", *(f"torchdeq {solver}" for solver in SOLVERS), "ratio", "bar", "verdict"],
    )
    for name, make, radius in (("tanh", TanhCell, 0.5), ("tanh", TanhCell, 0.9), ("linear", LinearCell, 0.9)):
        counts: dict[str, list[int]] = {}
        for seed in range(seeds):
            torch.manual_seed(seed)
            cell, x = make(width, radius).double(), torch.randn(8, width, dtype=torch.float64)
            for label, run in _counted(cell, x, tol).items():
                counts.setdefault(label, []).append(count_calls(cell, run))
        medians = {label: statistics.median(some) for label, some in counts.items()}
        ratio = medians["torchimplicit"] / medians["anderson"]
        cells = [f"{count:g}" + (" (limit)" if count >= LIMIT else "") for count in medians.values()]
        table.add(f"{name}, radius {radius}", *cells, f"{ratio:.2f}", *at_most(ratio, 0.6))
    return table


def _counted(cell: nn.Module, x: Tensor, tol: float) -> dict[str, Run]:
    z0 = torch.zeros_like(x)
    runs: dict[str, Run] = {
        "torchimplicit": lambda: ti.fixed_point(
            cell, z0, x, solver=ti.Anderson(rtol=tol, atol=0, max_steps=LIMIT), on_failure="ignore"
        )
    }
    for solver in SOLVERS:
        deq = get_deq(f_solver=solver, f_tol=tol, f_stop_mode="rel", f_max_iter=LIMIT, eval_f_max_iter=LIMIT).eval()
        runs[solver] = lambda deq=deq: deq(lambda z: cell(z, x), z0)
    return {label: torch.no_grad()(run) for label, run in runs.items()}


def overhead(batch: int, width: int, seconds: float) -> Table:
    """Time per Anderson step beyond `f`."""
    low, high = STEPS
    table = Table(
        "Overhead per Anderson step",
        f"Microseconds a step on tanh {batch} x {width}: the slope of the time over the number of steps, from {low} to "
        f"{high}, at a tolerance of zero. The ratio is of what is left when `f` itself is taken off. CPU time is that "
        "of the one thread; it holds on a busy machine too.",
        ["clock", "f alone", "torchimplicit", "torchdeq", "beyond f: ours", "torchdeq's", "ratio", "bar", "verdict"],
    )
    torch.manual_seed(0)
    cell, x = TanhCell(width), torch.randn(batch, width)
    z0, before = torch.zeros_like(x), torch.get_num_threads()

    def us(k: int) -> Run:
        solver = ti.Anderson(rtol=0, atol=0, max_steps=k)
        return torch.no_grad()(lambda: ti.fixed_point(cell, z0, x, solver=solver, on_failure="ignore"))

    def peer(k: int) -> Run:
        deq = get_deq(f_solver="anderson", f_tol=0.0, f_stop_mode="rel", f_max_iter=k, eval_f_max_iter=k).eval()
        return torch.no_grad()(lambda: deq(lambda z: cell(z, x), z0))

    def floor(k: int) -> Run:
        return torch.no_grad()(lambda: loop(cell, z0, x, k))

    runs: dict[str, Callable[[int], Run]] = {"f": floor, "us": us, "peer": peer}
    for make in runs.values():
        taken = count_calls(cell, make(high)) - count_calls(cell, make(low))
        assert taken == high - low, f"{taken} steps were taken, not {high - low}: they stopped before"
    for threads, name, clock in (
        (1, "CPU time, 1 thread", time.thread_time),
        (1, "wall, 1 thread", time.perf_counter),
        (2, "wall, 2 threads", time.perf_counter),
    ):
        torch.set_num_threads(threads)
        step = slopes(runs, STEPS, seconds, clock)
        beyond = step["us"] - step["f"], step["peer"] - step["f"]
        ratio = beyond[0] / beyond[1]
        shown = (step["f"], step["us"], step["peer"], *beyond)
        table.add(name, *(f"{time_:.0f}" for time_ in shown), f"{ratio:.2f}", *at_most(ratio, 0.25))
    torch.set_num_threads(before)
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


def sections(quick: bool) -> dict[str, Callable[[], Table]]:
    """What there is to measure, by name; `quick` makes it tiny."""

    def cases() -> list[Case]:
        torch.manual_seed(0)
        if quick:
            return [tanh_case(4, 16), conv_case(2, 8, 16, 6)]
        return [tanh_case(64, 128), tanh_case(256, 1024), conv_case(32, 48, 64, 32)]

    if quick:
        return {
            "overhead": lambda: overhead(4, 16, 0),
            "speed": lambda: speed(cases(), 0),
            "evaluations": lambda: evaluations(12, 1),
            "memory": lambda: memory(4, 32, (2, 5)),
        }
    return {
        "overhead": lambda: overhead(64, 128, 8),
        "speed": lambda: speed(cases(), 6),
        "evaluations": lambda: evaluations(60, 5),
        "memory": lambda: memory(256, 512, (10, 100)),
    }


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(sections(quick=True))
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes nothing")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="SECTION", help=f"of {', '.join(names)}; writes nothing"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("RESULTS.md"), help="the page of results"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    chosen = sections(options.quick)
    tables = [chosen[name]() for name in options.only or names]
    print(f"\n{time.perf_counter() - start:.0f} s")
    if not (options.quick or options.only):
        write_page(options.output, tables, options.threads)
        print(f"wrote {options.output}")
    return tables


if __name__ == "__main__":
    main()

"""Stochastic differential equations against torchsde and diffrax: speed, error, evaluations, memory.

python -m benchmarks.paths.sde              everything; rewrites benchmarks/SDE.md
python -m benchmarks.paths.sde --quick      tiny sizes, writes nothing
python -m benchmarks.paths.sde --only speed memory        some of it, writes nothing
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import torchimplicit as ti
from benchmarks.kit.measure import interleaved, peak_memory
from benchmarks.kit.table import Table, at_least, write_page
from benchmarks.paths import sde_cases, sde_jax
from benchmarks.paths.jax_process import Diffrax
from benchmarks.paths.noise import noise
from benchmarks.paths.sde_cases import Case, Counted, Solve, bare, cases, ours, theirs
from benchmarks.paths.unlike import adaptive

HOW = (
    "Rewritten by `python -m benchmarks.paths.sde`: the libraries of torch in one process, diffrax in one of its own, "
    "asked over a pipe, one thread each, single precision. The machine was shared with other work, so times are CPU "
    "times, the least of interleaved rounds, and to be compared within a problem only."
)
LIBRARIES = ("torchimplicit", "torchsde", "diffrax", "jax")
BARS = {  # torchsde's time over ours, of `(problem, method)`: forward; forward and backward by library
    ("GBM", "Euler"): (4, {"Direct": 2.5, "Checkpointed": 1.4}),
    ("OU", "Euler"): (None, {"Direct": 2.5, "Checkpointed": 1.4}),
    ("OU", "Milstein"): (3, {}),
    ("OU", "Heun"): (2.7, {}),
    ("networks", "Euler"): (1.3, {"Direct": 1.4, "Checkpointed": 0.78}),
    ("networks", "Milstein"): (1.6, {}),
    ("networks", "Heun"): (1.25, {}),
    ("OU", "ReversibleHeun"): (None, {"Reversible": 2.8}),
    ("networks", "ReversibleHeun"): (None, {"Reversible": 1.8}),
}
Row = Callable[[Case, str], Solve | None]
ROWS: dict[str, Row] = {
    "torchsde": theirs,
    "Direct": lambda case, method: ours(case, method, ti.Direct()),
    "Checkpointed": lambda case, method: ours(case, method, ti.Checkpointed()),
    "Reversible": lambda case, method: ours(case, method, ti.Reversible()) if method == "ReversibleHeun" else None,
    "bare loop": bare,
    "bare loop, noise by number": lambda case, method: bare(case, method, numbered=True),
}


def both(solve: Solve, case: Case) -> dict[str, Callable[[], object]]:
    """Solves forward, and forward and backward by the start and all parameters."""
    wanted = list(case.equation.parameters())

    def forward() -> object:
        with torch.no_grad():
            return solve(case.y0)

    def back() -> object:
        y0 = case.y0.clone().requires_grad_()
        return torch.autograd.grad(solve(y0).sum(), [y0, *wanted])

    return {"forward": forward, "fwd + bwd": back}


def evaluations(row: Row, case: Case, method: str) -> int:
    """How often a solve asks for drift or diffusion."""
    counted = Counted(case.equation)
    solve = row(replace(case, equation=counted), method)
    assert solve is not None
    with torch.no_grad():
        solve(case.y0)
    return len(counted.asked)


def speed(problems: list[Case], seconds: float) -> Table:
    """Time of solves to one output against torchsde's."""
    note = (
        "As many steps of the same size by the same formula everywhere, to one output. torchsde has its source told "
        "their size (by itself it takes a hundred times as long) and Milstein's method without derivatives, and its "
        "reversible method has its own adjoint; diffrax has a virtual tree. Ratios are torchsde's time over the "
        "library's; forward is without a graph, the same for all adjoints but for what the machine does. Evaluations: "
        "of drift or diffusion, forward, those once a solve among them. Error: root of the mean square against the "
        f"same paths at steps {sde_cases.FINER} times smaller. The bare loop: evaluations, normals of torch's "
        "generator, or ours, the same sums, and autograd."
    )
    table = Table(
        "Speed", note, ["problem", "method", "library", "ms", "ms fwd + bwd", "forward", "fwd + bwd", "bars", "verdict",
                        "evaluations", "error"])  # fmt: skip
    for case in problems:
        for method in case.methods:
            _compare(table, case, method, seconds)
    return table


def compiled(problems: list[Case], seconds: float) -> Table:
    """Euler's method by kernels, beside the same steps without, and loops by hand."""
    note = (
        "Euler's method, `sdeint(compile=True)`, beside what it is held against: plain steps, a bare loop that nobody "
        "has compiled, with normals of torch's generator, and jax's scan of the same sums, all of whose noise is drawn "
        "at once. Milliseconds as above."
    )
    table = Table("Compiled", note, ["problem", "library", "ms", "ms fwd + bwd", "torchsde / it", "fwd + bwd"])
    adjoints = {"Checkpointed": ti.Checkpointed(), "Direct": ti.Direct()}
    for case in problems:
        rows = {"torchsde": theirs(case, "Euler"), "bare loop": bare(case, "Euler")}
        for word, compile in (("plain", False), ("compiled", True)):
            rows |= {f"{word}, {name}": ours(case, "Euler", each, compile) for name, each in adjoints.items()}
        runs = {name: both(solve, case) for name, solve in rows.items() if solve is not None}
        timed = {f"{name} {part}": each[part] for part in ("forward", "fwd + bwd") for name, each in runs.items()}
        times = least(timed, seconds)
        if (jitted := None if seconds == 0 else sde_jax.start(case, "Euler")) is not None:
            asked = (
                (f"{name} {part}", part) for name in ("diffrax", "jax's scan") for part in ("forward", "fwd + bwd")
            )
            runs_there = {key: partial(jitted.ask, f"scan {part}" if "scan" in key else part) for key, part in asked}
            times |= least(runs_there, 0, jitted)
            jitted.close()
        for name in (*runs, *(("diffrax", "jax's scan") if jitted is not None else ())):
            pair = times[f"{name} forward"], times[f"{name} fwd + bwd"]
            ratios = times["torchsde forward"] / pair[0], times["torchsde fwd + bwd"] / pair[1]
            table.add(case.name, name, *(f"{ms:.2f}" for ms in pair), *(f"{ratio:.2f}x" for ratio in ratios))
    return table


def _compare(table: Table, case: Case, method: str, seconds: float) -> None:
    """Adds the rows of one problem and method."""
    solves = {name: solve for name, row in ROWS.items() if (solve := row(case, method)) is not None}
    jitted = None if seconds == 0 else sde_jax.start(case, method)
    runs = {name: both(solve, case) for name, solve in solves.items()}
    # All forward first: what a graph has left to the allocator is felt by who comes next.
    timed = {f"{name} {part}": each[part] for part in ("forward", "fwd + bwd") for name, each in runs.items()}
    times = least(timed, seconds)
    if jitted is not None:  # by itself, for it takes most of a round
        times |= least({f"diffrax {part}": partial(jitted.ask, part) for part in ("forward", "fwd + bwd")}, 0, jitted)
    for name in [*solves, *(["diffrax"] if jitted is not None else [])]:
        pair = times[f"{name} forward"], times[f"{name} fwd + bwd"]
        ratios = times["torchsde forward"] / pair[0], times["torchsde fwd + bwd"] / pair[1]
        cells = [f"{ms:.2f}" for ms in pair] + [f"{ratio:.2f}x" for ratio in ratios]
        count, error = "", ""
        if name in solves:
            count = str(evaluations(ROWS[name], case, method))
        if not name.startswith("bare"):
            error = f"{_error(solves.get(name), case, jitted):.1e}"
        table.add(case.name, method, name, *cells, *_verdict(case, method, name, ratios), count, error)
    if jitted is not None:
        jitted.close()


def _verdict(case: Case, method: str, name: str, ratios: tuple[float, float]) -> tuple[str, str]:
    forward, back = BARS.get((case.name.split()[0], method), (None, {}))
    bars = [forward if name == "Checkpointed" else None, back.get(name)]
    found = [("-", "-") if bar is None else at_least(ratio, bar) for ratio, bar in zip(ratios, bars, strict=True)]
    return ("", "") if bars == [None, None] else tuple(" / ".join(each) for each in zip(*found, strict=True))


def _error(solve: Solve | None, case: Case, jitted: Diffrax | None) -> float:
    """Root of the mean square of what smaller steps change of the same paths."""
    with torch.no_grad():
        if solve is not None:
            values = solve(case.y0, finer=False), solve(case.y0, finer=True)
        else:
            assert jitted is not None
            values = jitted.value(), jitted.value("finer")
    return float((values[0] - values[1]).square().mean().sqrt())


def least(runs: dict[str, Callable[[], object]], seconds: float, jitted: Diffrax | None = None) -> dict[str, float]:
    """The least CPU time of each run over interleaved rounds, in milliseconds."""

    def clock() -> float:
        return time.process_time() + (0 if jitted is None else jitted.spent)

    return interleaved(runs, seconds, clock=clock, of=min)


def memory(batch: int, steps: tuple[int, ...]) -> Table:
    """Peak of forward and backward at some numbers of Euler's steps."""
    table = Table(
        "Memory",
        f"Peak of one training step beyond what was held before, in MiB by the allocator's account: networks {batch} x "
        f"16, Euler or reversible Heun, one output; one state is {batch * 16 * 4 / 2**20:.2g} MiB.",
        ["adjoint", *(f"{count} steps" for count in steps), "ratio"],
    )
    rows: dict[str, Row] = {
        "torchimplicit, Checkpointed(checkpoints=16)": lambda case, method: ours(case, method, ti.Checkpointed(16)),
        "torchimplicit, Checkpointed()": ROWS["Checkpointed"],
        "torchimplicit, Direct()": ROWS["Direct"],
        "torchimplicit, Reversible()": ROWS["Reversible"],
        "torchsde, sdeint": theirs,
        "torchsde, adjoint_reversible_heun": theirs,
    }
    torch.manual_seed(0)
    equation = sde_cases.Networks(16, 64)
    for name, row in rows.items():
        peaks, method = [], "ReversibleHeun" if "eversible" in name else "Euler"
        for count in steps:
            case = Case("", equation, torch.ones(batch, 16), count, (), "")
            solve = row(case, method)
            assert solve is not None
            peaks.append(peak_memory(both(solve, case)["fwd + bwd"]))
        table.add(name, *(f"{peak / 2**20:.2f}" for peak in peaks), f"{peaks[-1] / peaks[0]:.2f}")
    return table


def unlike(quick: bool) -> Table:
    """Steps that samples choose."""
    if quick:
        return adaptive(8, 2, (1e-1, 1e-2), (1e-1, 1e-2))
    return adaptive(200, 40, (1e-1, 3e-2, 1e-2, 3e-3), (1e-1, 1e-2, 1e-3, 1e-4))


def sections(quick: bool) -> dict[str, Callable[[], Table]]:
    """What there is to measure, by name; `quick` makes it tiny."""
    return {
        "speed": lambda: speed(cases(quick), 0 if quick else 10),
        "compiled": lambda: compiled(cases(quick), 0 if quick else 8),
        "adaptive": lambda: unlike(quick),
        "memory": lambda: memory(4, (5, 10)) if quick else memory(256, (100, 400, 1600)),
        "noise": lambda: noise(((4, 1), (4, 8)), 0, 2) if quick else noise(),
    }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(sections(True)))
    options = parser.parse_args()
    if sde_cases.torchsde is None:
        print("torchsde, the peer, is not installed: pip install -e '.[bench]'")
        return
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    tables = [each() for name, each in sections(options.quick).items() if name in (options.only or [name])]
    if not options.quick and not options.only:
        load = f"{HOW} Load at the end: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores."
        write_page(Path(__file__).parents[1] / "SDE.md", tables, 1, load, LIBRARIES)


if __name__ == "__main__":
    main()

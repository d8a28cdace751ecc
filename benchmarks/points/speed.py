"""Speed and evaluations, to the same residuals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

import torchimplicit as ti
from benchmarks.kit.measure import Run, interleaved
from benchmarks.kit.table import Table, at_least, at_most
from benchmarks.points.cases import Case, LinearCell, TanhCell, count_calls
from benchmarks.points.contestants import LIMIT, SOLVERS, Contestant, best_torchdeq, get_deq, ours, plain

LABELS = {"forward": "forward", "both": "fwd + bwd"}


def speed(cases: Sequence[Case], seconds: float) -> Table:
    """Forward, and forward with backward, to the same relative residual."""
    table = Table(
        "Speed",
        "Both stop on `|f(z) - z| <= tol |z|` in every sample; residuals and gradients are then checked in float64 "
        "(gradients against plain iteration to convergence). Tanh cells have weights of spectral radius 0.9, the conv "
        "cell is that of the implicit layers tutorial at initialisation. The first row of a case has torchdeq with "
        "Anderson forward and whichever backward solver is fastest there (named); a second row, where there is one, "
        "has whichever forward solver is (picard: its `fixed_point_iter`), and the last one, where torchdeq's arrives, "
        "compares the two Broyden methods. Of two numbers in a cell, torchimplicit's is the first. `plain` is a bare "
        "loop of as many evaluations and vector-Jacobian products as torchimplicit took: the floor.",
        ["case", "pass", "tol", "our solver", "torchdeq's solvers", "torchimplicit ms", "torchdeq ms", "plain ms",
         "ratio", "bar", "verdict", "f evaluations", "true residuals", "gradient errors"],
    )  # fmt: skip
    for case in cases:
        for tol, bars in case.bars.items():
            mine = {"anderson": ours(case, tol), "broyden": ours(case, tol, ti.Broyden)}
            floors = {solver: plain(case, us) for solver, us in mine.items()}
            peers = best_torchdeq(case, tol, seconds / 4)
            for name, bar in zip(("forward", "both"), bars, strict=True):
                everyone = (*mine.values(), *peers, *floors.values())
                times = interleaved({each.name: getattr(each, name) for each in everyone}, seconds)
                for peer in peers:
                    solver = "broyden" if peer.solvers["forward"] == "broyden" else "anderson"
                    us, floor = mine[solver], floors[solver]
                    ratio = times[peer.name] / times[us.name]
                    verdict = at_least(ratio, bar) if peer is peers[0] else ("", "")
                    table.add(
                        case.name, LABELS[name], f"{tol:.0e}", solver, peer.solvers[name],
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
        "other solvers and Broyden's method (memory 10) stand beside.",
        ["map", "torchimplicit anderson", "torchimplicit broyden", *(f"torchdeq {solver}" for solver in SOLVERS),
         "ratio", "bar", "verdict"],
    )  # fmt: skip
    for name, make, radius in (("tanh", TanhCell, 0.5), ("tanh", TanhCell, 0.9), ("linear", LinearCell, 0.9)):
        counts: dict[str, list[int]] = {}
        for seed in range(seeds):
            torch.manual_seed(seed)
            cell, x = make(width, radius).double(), torch.randn(8, width, dtype=torch.float64)
            for label, run in _counted(cell, x, tol).items():
                counts.setdefault(label, []).append(count_calls(cell, run))
        medians = {label: statistics.median(some) for label, some in counts.items()}
        ratio = medians["torchimplicit anderson"] / medians["torchdeq anderson"]
        cells = [f"{count:g}" + (" (limit)" if count >= LIMIT else "") for count in medians.values()]
        table.add(f"{name}, radius {radius}", *cells, f"{ratio:.2f}", *at_most(ratio, 0.6))
    return table


def _counted(cell: nn.Module, x: Tensor, tol: float) -> dict[str, Run]:
    z0 = torch.zeros_like(x)
    runs: dict[str, Run] = {
        f"torchimplicit {solver.__name__.lower()}": partial(
            ti.fixed_point, cell, z0, x, solver=solver(rtol=tol, atol=0, max_steps=LIMIT), on_failure="ignore"
        )
        for solver in (ti.Anderson, ti.Broyden)
    }
    for solver in SOLVERS:
        deq = get_deq(f_solver=solver, f_tol=tol, f_stop_mode="rel", f_max_iter=LIMIT, eval_f_max_iter=LIMIT).eval()
        runs[f"torchdeq {solver}"] = lambda deq=deq: deq(lambda z: cell(z, x), z0)
    return {label: torch.no_grad()(run) for label, run in runs.items()}

"""Programs and projections against moreau, proxsuite, qpth, cvxpylayers, Clarabel, HiGHS: speed, warm starts, errors.

python -m benchmarks.programs              everything; rewrites benchmarks/OPTIM.md
python -m benchmarks.programs --quick      tiny sizes, writes nothing
python -m benchmarks.programs --only warm        some of it, writes nothing
"""

from __future__ import annotations

import os

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # before a peer starts its threads

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table, at_least, at_most, write_page
from benchmarks.programs.cases import NAMES, Exact, Programs, exact, kkt_residual, programs, relative
from benchmarks.programs.linear import linear
from benchmarks.programs.peers import Contestant, Found, contestants
from benchmarks.programs.projections import projections
from benchmarks.programs.sparse import sparse

HOW = (
    "Rewritten by `python -m benchmarks.programs`: the libraries in one process, one thread each, medians over "
    "interleaved repeats, everything in double precision. The machine was shared with other work, so times are "
    "CPU times, and even these are to be compared within a size only."
)
LIBRARIES = ("torchimplicit", "moreau", "proxsuite", "qpth", "cvxpylayers", "cvxpy", "clarabel", "scipy")
SIZES = (10, 50, 100)
EXACT = 1e-9  # relative error of solution, multipliers and gradient


def differentiated(contestant: Contestant, leaves: tuple[Tensor, ...], weight: Tensor) -> tuple[Tensor, ...]:
    """Solves, and differentiates by everything."""
    return torch.autograd.grad((contestant.solve(*leaves)[0] * weight).sum(), leaves)


def speed(sizes: tuple[int, ...], batch: int, seconds: float) -> list[Table]:
    """Time forward and backward, and how far solution and gradient are from the exact ones."""
    note = (
        f"Batch {batch}, n unknowns, n inequalities, n / 5 equations, everything requires grad. Ratios are the "
        "library's time over ours, their bars on forward and backward together."
    )
    table = Table("Quadratic programs: speed", note, ["n", "library", "ms", "ms fwd + bwd", "forward", "fwd + bwd",
                                                      "bar", "verdict"])  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for n in sizes:
        problem, field = programs(batch, n, n, n // 5), contestants(batch, n, n, n // 5)
        truth = exact(problem.tensors, problem.weight)
        rows += [(str(n), contestant.name, *accuracy(contestant, problem, truth)) for contestant in field]
        found = interleaved(_both(field, problem), seconds, clock=time.process_time)
        pairs = {each.name: (found[f"{each.name} forward"], found[f"{each.name} both"]) for each in field}
        for each in field:
            pair = pairs[each.name]
            ratios = [its / mine for its, mine in zip(pair, pairs["torchimplicit"], strict=True)]
            verdict = at_least(ratios[1], each.bars[n]) if n in each.bars else ("", "")
            cells = [f"{ms:.2f}" for ms in pair] + [f"{ratio:.2f}x" for ratio in ratios]
            table.add(str(n), each.name, *cells, *verdict)
    return [table, _errors(rows)]


def _both(field: list[Contestant], problem: Programs) -> dict[str, Callable[[], object]]:
    """Every contestant forward, and forward and backward."""
    leaves = problem.leaves()
    runs: dict[str, Callable[[], object]] = {}
    for each in field:
        runs[f"{each.name} forward"] = torch.no_grad()(lambda each=each: each.solve(*leaves))
        runs[f"{each.name} both"] = lambda each=each: differentiated(each, leaves, problem.weight)
    return runs


def accuracy(contestant: Contestant, problem: Programs, truth: Exact) -> tuple[str, ...]:
    """Errors of solution, multipliers and gradient, the residual, and the verdict of our own row."""
    leaves = problem.leaves()
    z, y, nu = contestant.solve(*leaves)
    Q, *others = torch.autograd.grad((z * problem.weight).sum(), leaves)
    pairs = zip(((Q + Q.mT) / 2, *others), truth.gradients, strict=True)
    gradient = torch.stack([relative(mine, its) for mine, its in pairs]).amax(0)
    worst = [relative(z.detach(), truth.z).max(), gradient.max()]
    multipliers = residual = ""
    if y is not None and nu is not None:
        off = torch.maximum(relative(y.detach(), truth.y).max(), relative(nu.detach(), truth.nu).max())
        worst.append(off)
        plain = tuple(part.detach() for part in leaves)
        multipliers, residual = f"{off:.0e}", f"{kkt_residual(plain, z.detach(), y.detach(), nu.detach()):.0e}"
    bar = ("", "")
    if contestant.name == "torchimplicit":
        largest = float(max(worst))
        bar = f"<= {EXACT:g}", "met" if largest <= EXACT else f"{largest / EXACT:.0f} times it"
    return f"{worst[0]:.0e}", multipliers, f"{gradient.median():.0e}", f"{gradient.max():.0e}", residual, *bar


def _errors(rows: list[tuple[str, ...]]) -> Table:
    note = (
        "Relative, per program: the largest for the solution and its multipliers (where a library gives them), the "
        f"median and the largest for the gradient, of which the worst of those by {', '.join(NAMES)} counts. The truth "
        "is found by a dual active-set method written for this page. Residual: the largest violation of a condition "
        "of Karush, Kuhn and Tucker, absolute."
    )
    header = ["n", "library", "solution", "multipliers", "gradient, median", "gradient, largest", "residual", "bar",
              "verdict"]  # fmt: skip
    table = Table("Quadratic programs: errors", note, header)
    for row in rows:
        table.add(*row)
    return table


def warm(sizes: tuple[int, ...], batch: int, amounts: tuple[float, ...], seconds: float) -> Table:
    """Time of solving programs again that have moved a little."""
    note = (
        f"Batch {batch}, forward. All data have moved by random normal numbers of the size named since the solution "
        "that is started from. Cold: the same programs without it."
    )
    table = Table("Quadratic programs: warm starts", note, ["n", "moved by", "library", "ms cold", "ms warm", "ratio",
                                                            "bar", "verdict", "apart"])  # fmt: skip
    for n in sizes:
        field = [each for each in contestants(batch, n, n, n // 5, say=False) if each.warm is not None]
        problem = programs(batch, n, n, n // 5)
        for amount in amounts:
            pairs = {each.name: _cold_and_warm(each, problem, problem.moved(amount)) for each in field}
            runs = {f"{name} {i}": run for name, pair in pairs.items() for i, run in enumerate(pair)}
            found = interleaved(runs, seconds, clock=time.process_time)
            for name, pair in pairs.items():
                cold, again = found[f"{name} 0"], found[f"{name} 1"]
                apart = float(relative(pair[1]()[0], pair[0]()[0]).max())
                verdict = at_most(again / cold, 0.5) if name == "torchimplicit" else ("", "")
                cells = f"{cold:.2f}", f"{again:.2f}", f"{again / cold:.2f}"
                table.add(str(n), f"{amount:g}", name, *cells, *verdict, f"{apart:.0e}")
    return table


def _cold_and_warm(each: Contestant, problem: Programs, moved: Programs) -> tuple[Callable[[], Found], ...]:
    tensors, warm = moved.tensors, each.warm
    assert warm is not None
    each.solve(*problem.tensors)
    earlier = each.memory()
    return lambda: each.solve(*tensors), lambda: warm(tensors, earlier)


def sections(quick: bool) -> dict[str, Callable[[], list[Table]]]:
    """What there is to measure, by name; `quick` makes it tiny."""
    if quick:
        return {
            "speed": lambda: speed((10,), 4, 0),
            "warm": lambda: [warm((10,), 4, (1e-3,), 0)],
            "linear": lambda: [linear((5,), 0)],
            "sparse": lambda: [sparse(60, 0)],
            "projections": lambda: [projections(4, 6, 0)],
        }
    return {
        "speed": lambda: speed(SIZES, 128, 20),
        "warm": lambda: [warm(SIZES, 128, (1e-3, 1e-2, 5e-2), 5)],
        "linear": lambda: [linear((10, 25), 10)],
        "sparse": lambda: [sparse(10_000, 10)],
        "projections": lambda: [projections(1024, 50, 5)],
    }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(sections(True)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: each for name, each in sections(options.quick).items() if name in (options.only or [name])}
    tables = [table for each in chosen.values() for table in each()]
    if not options.quick and not options.only:
        write_page(Path(__file__).parents[1] / "OPTIM.md", tables, 1, HOW, LIBRARIES)


if __name__ == "__main__":
    main()

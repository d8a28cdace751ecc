"""Equilibrium models against their peers: speed, evaluations, overhead, memory, gradients, unequal batches.

python -m benchmarks.points              everything; rewrites benchmarks/RESULTS.md and docs/gradients.png
python -m benchmarks.points --quick      tiny sizes, seconds, writes nothing
python -m benchmarks.points --only overhead memory      some of it, writes nothing
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.kit.table import Table, write_page
from benchmarks.points.batches import batches
from benchmarks.points.cases import Case, conv_case, double_case, tanh_case
from benchmarks.points.gradients import accurate, modes
from benchmarks.points.peers import peers
from benchmarks.points.speed import evaluations, speed
from benchmarks.points.steps import large, memory, overhead

HOW = (
    "Rewritten by `make bench` (`python -m benchmarks.points`): the libraries in one process, with the same number of "
    "threads, medians over interleaved repeats."
)
ELSEWHERE = ("memory", "peers")  # measured on the CPU alone: its allocator, and JAX
PICTURE = Path(__file__).parents[2] / "docs" / "gradients.png"


def cases(quick: bool) -> list[Case]:
    """Of the speed."""
    torch.manual_seed(0)
    if quick:
        return [tanh_case(4, 16), conv_case(2, 8, 16, 6)]
    return [tanh_case(64, 128), tanh_case(256, 1024), conv_case(32, 48, 64, 32)]


def maps(quick: bool) -> list[Case]:
    """Of the kinds of gradients."""
    torch.manual_seed(0)
    if quick:
        return [tanh_case(4, 16, 0.5), tanh_case(4, 16), conv_case(2, 8, 16, 6)]
    return [tanh_case(64, 128, 0.5), tanh_case(64, 128), conv_case(4, 48, 64, 32, reference_rtol=1e-9)]


def held(quick: bool) -> list[tuple[Case, float]]:
    """Of the accurate gradients, with the error of each; some tanh cells, for the linear solve has luck with some."""
    found = []
    for seed in range(1 if quick else 4):
        torch.manual_seed(seed)
        tanh = tanh_case(4, 16) if quick else tanh_case(64, 128)
        tanh.name += f", map {seed}"
        found.append((tanh, 1e-4))
    conv = conv_case(2, 8, 16, 6) if quick else conv_case(2, 48, 64, 16, reference_rtol=1e-11)
    return [*found, (conv, 1e-2), (double_case(conv), 1e-4)]


def sections(quick: bool, picture: Path | None = None) -> dict[str, Callable[[], Table]]:
    """What there is to measure, by name; `quick` makes it tiny.

    Args:
        quick: tiny sizes.
        picture: where to draw the kinds of gradients.
    """
    if quick:
        return {
            "overhead": lambda: overhead(4, 16, 0),
            "large": lambda: large(cases(quick)[-1], (1e-2,), 0),
            "speed": lambda: speed(cases(quick), 0),
            "evaluations": lambda: evaluations(12, 1),
            "memory": lambda: memory(4, 32, (2, 5)),
            "accurate": lambda: accurate(held(quick), 0),
            "modes": lambda: modes(maps(quick), 0, picture=picture),
            "batches": lambda: batches(20, 8, 0),
            "peers": lambda: peers(cases(quick)[:1], (1e-4,), 0),
        }
    return {
        "overhead": lambda: overhead(64, 128, 5),
        "large": lambda: large(cases(quick)[-1], (1e-2, 1e-3), 10),
        "speed": lambda: speed(cases(quick), 6),
        "evaluations": lambda: evaluations(60, 5),
        "memory": lambda: memory(256, 512, (10, 100)),
        "accurate": lambda: accurate(held(quick), 1),
        "modes": lambda: modes(maps(quick), 5, picture=picture),
        "batches": lambda: batches(256, 512, 3),
        "peers": lambda: peers(cases(quick)[:1], (1e-4, 1e-6), 2),  # last: nothing shares a process with JAX before
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
    parser.add_argument("--device", help="where the tensors are: cuda, ...; peers of other frameworks are left out")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[1] / "RESULTS.md", help="the page of results"
    )
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the picture of the kinds of gradients")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    start = time.perf_counter()
    whole = not (options.quick or options.only)
    chosen = sections(options.quick, options.picture if whole else None)
    names = [name for name in names if options.device in (None, "cpu") or name not in ELSEWHERE]
    tables = [chosen[name]() for name in options.only or names]
    print(f"\n{time.perf_counter() - start:.0f} s")
    if whole:
        write_page(options.output, tables, options.threads, HOW)
        print(f"wrote {options.output}")
    return tables


if __name__ == "__main__":
    main()

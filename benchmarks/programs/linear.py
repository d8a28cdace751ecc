"""Linear programs: solved and differentiated by `qp`, against HiGHS' solve alone, of the same program."""

from __future__ import annotations

import time

import torch
from scipy.optimize import linprog

from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table, at_most
from torchimplicit import qp

BAR = 30.0  # times HiGHS' own solve, forward and backward together
DOUBLE = torch.float64


def transport(side: int) -> dict[str, torch.Tensor]:
    """The cheapest plan of `side` places with `side` others: a matrix whose rows and columns add up to 1."""
    eye, ones = torch.eye(side, dtype=DOUBLE), torch.ones(1, side, dtype=DOUBLE)
    sums = torch.cat((torch.kron(eye, ones), torch.kron(ones, eye)))
    costs = torch.rand(side * side, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    return {"q": costs, "A": sums, "b": torch.ones(2 * side, dtype=DOUBLE), "l": torch.zeros(side * side, dtype=DOUBLE)}


def linear(sides: tuple[int, ...], seconds: float) -> Table:
    """Time and optimum, side by side."""
    note = (
        "Transport between n places and n others, one program of n * n unknowns whose equations depend on each other "
        "and whose vertices are degenerate; everything requires grad. Times of `qp` are forward and backward together, "
        "those of HiGHS are its solve alone, through scipy. Apart: the optima, relative."
    )
    table = Table("Linear programs", note, ["n", "qp, ms", "HiGHS, ms", "ratio", "bar", "verdict", "residual", "apart"])
    for side in sides:
        given = {name: part.requires_grad_() for name, part in transport(side).items()}
        q, A, b = (given[name].detach().numpy() for name in ("q", "A", "b"))
        theirs = lambda q=q, A=A, b=b: linprog(q, A_eq=A, b_eq=b, method="highs")  # noqa: E731
        ours = lambda given=given: (qp(None, **given).value ** 2).sum().backward()  # noqa: E731
        solution = qp(None, **given)
        best = theirs().fun
        apart = abs(float(given["q"].detach() @ solution.value.detach().flatten()) - best) / best
        times = interleaved({"ours": ours, "theirs": theirs}, seconds, clock=time.process_time)
        ratio = times["ours"] / times["theirs"]
        cells = f"{times['ours']:.1f}", f"{times['theirs']:.1f}", f"{ratio:.1f}"
        table.add(str(side), *cells, *at_most(ratio, BAR), f"{float(solution.residual.max()):.0e}", f"{apart:.0e}")
    return table

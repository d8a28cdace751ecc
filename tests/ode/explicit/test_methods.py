"""Dopri8: what its extra stages cost, and what its order saves. Every method's order is measured by the contract."""

import torch

import torchimplicit as ti
from torchimplicit.testing.path_solvers import of_step
from torchimplicit.testing.paths import GROWTH

START = torch.ones(1, 2, dtype=torch.float64)


def test_dopri8_evaluates_its_extra_stages_only_where_an_output_lies_inside_a_step():
    solver = of_step(ti.Dopri8(), 0.5)
    ends = GROWTH.solve(torch.tensor([0.0, 2.0], dtype=torch.float64), START, solver=solver).report
    inside = GROWTH.solve(torch.tensor([0.0, 0.7, 0.8, 2.0], dtype=torch.float64), START, solver=solver).report
    assert int(ends.steps[0]) == int(inside.steps[0]) == 4
    assert inside.nfev == ends.nfev + 3


def test_dopri8_needs_fewer_evaluations_at_tight_tolerances_and_meets_them():
    ts = torch.linspace(0, 6, 5, dtype=torch.float64)
    high, low = (GROWTH.solve(ts, START, solver=method(rtol=1e-11, atol=1e-11)) for method in (ti.Dopri8, ti.Tsit5))
    assert high.report.nfev < 0.55 * low.report.nfev
    assert float((high.value - GROWTH.path(ts, START)).abs().max()) < 1e-9

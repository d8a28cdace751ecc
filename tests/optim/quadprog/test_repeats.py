"""Rows that repeat each other, and whose bounds are the same but for rounding."""

import pytest
import torch

import torchimplicit as ti

one = torch.float64


def program(crossed, unit):
    """Two unknowns of a size about one, in a unit; a row from zero on, and twice as much of it up to `-crossed`."""
    R = torch.tensor([[1.0, -1.0], [2.0, -2.0], [1.0, 1.0]], dtype=one) / unit
    low, high = (
        torch.tensor([0.0, -torch.inf, 1.5], dtype=one),
        torch.tensor([torch.inf, -crossed, torch.inf], dtype=one),
    )
    q = torch.tensor([1.0, 2.0], dtype=one) / unit
    return ti.qp(torch.eye(2, dtype=one) / unit**2, q, C=R, l=low, u=high, on_failure="ignore")


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("crossed", [0.0, 1e-19, 1e-17])
def test_bounds_that_are_zero_but_for_rounding_are_met(crossed, unit):
    found = program(crossed, unit)
    assert found.report.converged, found.report
    assert torch.allclose(found.value / unit, torch.full((2,), 0.75, dtype=one), rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("crossed", [1e-12, 1e-6, 1.0])
def test_bounds_that_contradict_each_other_by_more_are_said_to(crossed, unit):
    found = program(crossed, unit)
    assert found.status.tolist() == [ti.Status.INFEASIBLE]

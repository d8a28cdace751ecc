"""Functions that kernels make of fewer operations: right to rounding, everywhere, with their derivatives."""

import math

import pytest
import torch

from torchimplicit.core.compiled import functions

EPS = torch.finfo(torch.float32).eps
SIZES = torch.cat([torch.logspace(-37, 2, 4001), torch.linspace(8.9, 9.1, 2001), torch.tensor([math.inf])])


def test_the_hyperbolic_tangent_is_right_to_four_units_in_the_last_place():
    for x in (SIZES, -SIZES):
        exact = torch.tanh(x.double())
        found = functions.tanh(x).double()
        assert bool(((found - exact).abs() <= 4 * EPS * exact.abs()).all())


def test_it_is_odd_bounded_and_monotone_to_rounding_and_one_far_out():
    x = torch.linspace(-12, 12, 100001)
    found = functions.tanh(x)
    assert torch.equal(found, -functions.tanh(-x))
    assert bool((found.abs() <= 1).all())
    assert bool((found.diff() >= -2 * EPS).all())
    assert bool((found[x.abs() > functions.LAST].abs() == 1).all())


def test_it_keeps_zero_and_what_is_no_number():
    assert functions.tanh(torch.zeros(1)).tolist() == [0.0]
    assert bool(functions.tanh(torch.tensor([math.nan])).isnan().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_torch(dtype):
    assert functions.tanh(torch.ones(2, dtype=dtype)) is NotImplemented


def test_the_table_is_torchs_own_with_these_in_it():
    table = functions.decompositions()
    assert table[torch.ops.aten.tanh.default] is functions.tanh
    assert torch.ops.aten.gelu.default in table or len(table) > 100

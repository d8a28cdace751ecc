"""The distance to the fixed point, from a few products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit.imaging.reconstruct.distance import general_step, symmetric_distance
from torchimplicit.linear import Jacobian


def system(seed, n=30, low=1e-4, batch=2):
    """`B`, as a Jacobian, with eigenvalues from `low` to one, a residual, and the length of `B^{-1} r`."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(batch, n, n, dtype=torch.float64, generator=generator)).Q
    values = torch.logspace(torch.log10(torch.tensor(low)).item(), 0, n, dtype=torch.float64)
    b = q @ torch.diag(values) @ q.mT
    r = torch.randn(batch, n, dtype=torch.float64, generator=generator)
    jacobian = Jacobian(lambda z: torch.bmm(b, z.unsqueeze(2)).squeeze(2), torch.zeros_like(r))
    return jacobian, r, torch.linalg.solve(b, r).norm(dim=1)


def length(jacobian, r, products):
    step, short = general_step(jacobian, r, products)
    return short * step.norm(dim=1)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(1e-5, 1e-3))
def test_the_true_length_lies_between_the_bounds(seed, products, low):
    jacobian, r, true = system(seed, low=low)
    lower, upper = symmetric_distance(jacobian, r, torch.full((2,), 0.9 * low, dtype=torch.float64), products)
    assert bool((lower <= true * (1 + 1e-6)).all())
    assert bool((true <= upper * (1 + 1e-6)).all())


def test_more_products_come_closer_and_as_many_as_unknowns_are_exact():
    jacobian, r, true = system(0, low=1e-2)
    least = torch.full((2,), 5e-3, dtype=torch.float64)
    gaps = []
    for products in (2, 8, 30):
        lower, upper = symmetric_distance(jacobian, r, least, products)
        gaps.append(float((upper / lower).max()))
    assert gaps[0] > gaps[1] > gaps[2]
    torch.testing.assert_close(upper, true)
    torch.testing.assert_close(lower, true)


def test_a_process_that_ends_early_is_exact():
    jacobian = Jacobian(lambda z: 0.25 * z, torch.zeros(1, 8, dtype=torch.float64))
    r = torch.ones(1, 8, dtype=torch.float64)
    for bound in symmetric_distance(jacobian, r, torch.tensor([0.1], dtype=torch.float64), 6):
        torch.testing.assert_close(bound, 4 * r.norm(dim=1))


def test_no_residual_is_no_distance():
    jacobian, r, _ = system(0)
    least = torch.full((2,), 1e-5, dtype=torch.float64)
    assert symmetric_distance(jacobian, 0 * r, least, 5)[1].tolist() == [0, 0]
    assert length(jacobian, 0 * r, 5).tolist() == [0, 0]


def test_of_any_matrix_the_estimate_is_near():
    generator = torch.Generator().manual_seed(0)
    b = torch.eye(20, dtype=torch.float64) - 0.15 * torch.randn(2, 20, 20, dtype=torch.float64, generator=generator)
    r = torch.randn(2, 20, dtype=torch.float64, generator=generator)
    jacobian = Jacobian(lambda z: torch.bmm(b, z.unsqueeze(2)).squeeze(2), torch.zeros_like(r))
    true = torch.linalg.solve(b, r).norm(dim=1)
    assert (length(jacobian, r, 20) / true).tolist() == pytest.approx([1, 1], rel=0.05)
    ratio = length(jacobian, r, 8) / true
    assert bool(((ratio > 0.3) & (ratio < 3)).all())


def test_of_what_few_products_find_the_rest_of_the_way_is_estimated():
    jacobian, r, _ = system(0, low=1e-2)
    few, short = general_step(jacobian, r, 3)
    rest = (r - jacobian.matvec(few)).norm(dim=1)
    torch.testing.assert_close(short, 1 + rest / (r.norm(dim=1) - rest), rtol=1e-6, atol=1e-8)
    assert bool((short > 1.1).all())

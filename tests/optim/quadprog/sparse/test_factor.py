"""Sparse symmetric systems that may be singular, and whether sparse matrices are convex."""

import pytest
import torch

from torchimplicit.optim.quadprog.sparse.factor import Factor, is_convex


def factor(Q, rows):
    first, second = len(Q), len(rows)
    below = torch.zeros(second, second, dtype=torch.float64)
    matrix = torch.cat((torch.cat((Q, rows.T), 1), torch.cat((rows, below), 1)))
    row, column = matrix.nonzero(as_tuple=True)
    return matrix, Factor(matrix[row, column], row, column, first, second)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("small", [1.0, 1e-5, 1e-7])
def test_what_is_held_back_less_than_by_the_shift_is_solved_to_rounding(small):
    frame = torch.linalg.qr(draw(8, 8)).Q
    Q = frame @ torch.diag(torch.cat((torch.full((3,), small), torch.ones(5))).double()) @ frame.T
    matrix, system = factor((Q + Q.T) / 2, draw(2, 8, seed=1))
    expected = draw(10, seed=2)
    found, residual = system.solve(matrix @ expected)
    assert residual < 1e-14
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14 / small)
    assert system.loose() == (False, False)


def test_small_eigenvalues_of_many_sizes_take_no_more_than_a_few_steps():
    frame = torch.linalg.qr(draw(8, 8)).Q
    sizes = torch.tensor([1e-8, 3e-8, 1e-7, 3e-7, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    Q = frame @ torch.diag(sizes) @ frame.T
    matrix, system = factor((Q + Q.T) / 2, draw(2, 8, seed=1))
    assert system.solve(matrix @ draw(10, seed=2))[1] < 1e-14


def test_dependent_rows_are_solved_where_they_agree_and_told():
    rows = draw(2, 6)
    matrix, system = factor(torch.eye(6, dtype=torch.float64), torch.cat((rows, rows.sum(0, keepdim=True))))
    right = matrix @ draw(9, seed=1)
    found, residual = system.solve(right)
    assert residual < 1e-13
    torch.testing.assert_close(matrix @ found, right, rtol=1e-12, atol=1e-12)
    assert system.loose() == (False, True)


def test_what_disagrees_has_a_residual_and_a_least_squares_solution():
    matrix, system = factor(torch.diag(torch.tensor([1.0, 0.0]).double()), torch.zeros(0, 2, dtype=torch.float64))
    right = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert system.solve(right)[1] > 0.5
    found, residual = system.shortest(right)
    assert residual > 0.5, "said"
    torch.testing.assert_close(found, torch.linalg.pinv(matrix) @ right)
    assert system.loose() == (True, False)


@pytest.mark.parametrize("lowest", [-1e-3, -1e-12, 0.0, 1e-3])
def test_convex_is_what_has_no_negative_eigenvalue_beyond_rounding(lowest):
    frame = torch.linalg.qr(draw(7, 7)).Q
    Q = frame @ torch.diag(torch.cat((torch.tensor([lowest]), torch.ones(6))).double()) @ frame.T
    Q = (Q + Q.T) / 2
    row, column = Q.nonzero(as_tuple=True)
    assert is_convex(Q[row, column], row, column, 7, 1e-9) == (lowest > -1e-9)


def test_nothing_has_the_solution_nothing():
    none = torch.zeros(0, dtype=torch.float64)
    place = torch.zeros(0, dtype=torch.int64)
    assert Factor(none, place, place, 0, 0).solve(none)[1] == 0

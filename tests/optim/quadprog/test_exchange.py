"""Bounds next to each other: working rows are exchanged until the right ones are met."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit.optim.quadprog.active_set import Point
from torchimplicit.optim.quadprog.exchange import exchanged
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.singular import Singular
from torchimplicit.optim.quadprog.sparse.kkt import SparseKKT
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix
from torchimplicit.optim.quadprog.verdict import judge

WIDTH = 2.0**-30  # about 1e-9, so that sums are exact


def knapsack(prices, filled):
    """The cheapest way to fill boxes of a width, so many of them; rows are the sum and the boxes. And that way."""
    n = len(prices)
    rows = torch.cat((torch.ones(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)))
    sum_ = torch.tensor([n / 2 + filled * WIDTH], dtype=torch.float64)
    lower = torch.full((n,), 0.5, dtype=torch.float64)
    q = torch.tensor(prices, dtype=torch.float64)
    z = lower.index_add(0, q.argsort()[:filled], torch.full((filled,), WIDTH, dtype=torch.float64))
    return q, rows, torch.cat((sum_, lower)), torch.cat((sum_, lower + WIDTH)), z


@settings(max_examples=30, derandomize=True)
@given(st.permutations(range(1, 7)), st.integers(0, 6), st.booleans())
def test_from_the_wrong_side_of_every_box_to_the_solution(prices, filled, sparse):
    q, rows, lower, upper, z = knapsack(prices, filled)
    n = len(q)
    matrices = (torch.zeros(n, n, dtype=torch.float64), rows)
    Q, R = map(SparseMatrix.of, matrices) if sparse else (matrix[None] for matrix in matrices)
    program = Program(Q, q[None], R, lower[None], upper[None], 1)
    begin = Point.nothing(program)
    begin.z, begin.y[0, 1:] = torch.full((1, n), 0.5, dtype=torch.float64), -q
    begin.active = torch.tensor([[1] + [-1] * n], dtype=torch.int8)
    found = exchanged(program, begin, SparseKKT if sparse else Singular.of)
    assert judge(program, found.z, found.y)[0].item() <= 1e-15
    assert torch.equal(found.z[0], z)


@pytest.mark.parametrize("solver", [ti.optim.Clarabel(), ti.optim.InteriorPoint()])
@pytest.mark.parametrize("filled", [1, 2, 3, 4])
def test_narrow_boxes_beside_a_large_unknown_are_solved_to_the_last_digit(filled, solver):
    """Their width is 1e-13 of the largest unknown: no interior point sees it, and the verdict takes it for rounding."""
    q, rows, lower, upper, z = knapsack([3.0, 1.0, 5.0, 2.0, 4.0], filled)
    far = torch.tensor([8192.0], dtype=torch.float64)
    R = torch.block_diag(rows, torch.ones(1, 1, dtype=torch.float64)).to_sparse_coo()
    lower, upper = torch.cat((lower, far)), torch.cat((upper, 2 * far))
    q = torch.cat((q, torch.ones(1, dtype=torch.float64)))
    found = ti.qp(None, q, C=R, l=lower, u=upper, solver=solver)
    assert (found.value - torch.cat((z, far))).abs().max() <= 1e-15

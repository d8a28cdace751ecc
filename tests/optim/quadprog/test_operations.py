"""What solving one small program costs, counted: there the number of operations is the time."""

import pytest
import torch

from tests.test_equations import CountOperations
from torchimplicit.optim import qp


def programs(batch, n, m, p, seed):
    """Feasible programs with a definite `Q`, inequalities of which some are met, and equations."""
    draw = torch.Generator().manual_seed(seed)
    root, G, A, q, z = (
        torch.randn(batch, *shape, dtype=torch.float64, generator=draw)
        for shape in ((n, n), (m, n), (p, n), (n,), (n,))
    )
    reached = [(rows @ z.unsqueeze(2)).squeeze(2) for rows in (G, A)]
    h = reached[0] + torch.rand(batch, m, dtype=torch.float64, generator=draw)
    Q = root @ root.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    return [part.requires_grad_() for part in (Q, q, G, h, A, reached[1])]


@pytest.mark.parametrize("n", [5, 10, 20, 50])
def test_one_program_forward_and_backward(n):
    # Without pivoting, and with every verdict looked at again, it was 1200 and 150.
    given = programs(1, n, n, n // 5, n)
    with CountOperations() as forward:
        solution = qp(*given)
    with CountOperations() as backward:
        solution.value.sum().backward()
    assert solution.report.converged
    assert forward.count <= 280 + 26 * int(solution.steps.max())
    assert backward.count <= 105


def test_a_batch_costs_few_operations_more():
    given = programs(64, 10, 10, 2, 0)
    with CountOperations() as counter:
        solution = qp(*given)
    assert solution.report.converged
    assert counter.count <= 1000


def test_many_rows_are_reduced_to_the_unknowns():
    """The whole system of unknowns and rows took 4,100 operations."""
    given = programs(1, 10, 200, 0, 3)[:4]
    with CountOperations() as counter:
        solution = qp(*given)
    assert solution.report.converged
    assert counter.count <= 2000


def test_pivoting_in_vain_costs_little():
    """The interior point alone took 1,850 operations; sixteen rounds of pivoting before it made that 2,460."""
    given = programs(16, 20, 40, 0, 0)[:4]
    with CountOperations() as counter:
        solution = qp(*given)
    assert solution.report.converged
    assert counter.count <= 2000

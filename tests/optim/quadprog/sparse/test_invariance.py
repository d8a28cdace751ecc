"""What changes nothing about a sparse program: being written densely, the order of its rows, its units, its mates."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchimplicit import Status, qp
from torchimplicit.optim import Clarabel, InteriorPoint

seeds = st.integers(0, 2**31 - 1)


def draw(seed, n, rows, fate):
    """A program with few entries, around a point that it has room at; without a solution where asked for."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = torch.where(normal(n, n) > 1.0, normal(n, n), 0.0)
    Q = root @ root.T + torch.diag((normal(n) > 0).double())
    C = torch.where(normal(rows, n) > 0.5, normal(rows, n), 0.0)
    C[:, 0] += 1.0
    if fate == Status.UNBOUNDED:
        C[:, -1] = 0.0
    reached = C @ normal(n)
    low, high = reached - normal(rows).abs(), reached + normal(rows).abs()
    if fate == Status.INFEASIBLE:
        C, low, high = torch.cat((C, C[:1])), torch.cat((low, high[:1] + 1)), torch.cat((high, high[:1] + 2))
    q = normal(n)
    if fate == Status.UNBOUNDED:
        Q[-1], Q[:, -1], q[-1] = 0.0, 0.0, 1.0
    else:  # costs that the curvature and the rows hold back
        q = Q @ q + C.T @ normal(len(C))
    return Q, q, C, low, high


def solve(Q, q, C, low, high, solver):
    return qp(Q.to_sparse(), q, C=C.to_sparse(), l=low, u=high, solver=solver, on_failure="ignore")


def same(first, second):
    assert first.status.tolist() == second.status.tolist()
    if first.report.converged:
        assert first.determined.value.tolist() == second.determined.value.tolist()
        if first.determined.value.item():
            torch.testing.assert_close(first.value, second.value, rtol=1e-9, atol=1e-9)


@example(seed=0, n=5, rows=1, fate=Status.UNBOUNDED, unit=3)
@example(seed=1, n=5, rows=1, fate=Status.UNBOUNDED, unit=-6)
@settings(max_examples=30)
@given(
    seed=seeds,
    n=st.integers(2, 12),
    rows=st.integers(1, 12),
    fate=st.sampled_from([Status.CONVERGED, Status.CONVERGED, Status.INFEASIBLE, Status.UNBOUNDED]),
    unit=st.integers(-6, 6),
)
def test_a_verdict_and_a_solution_know_no_layout_no_order_and_no_units(seed, n, rows, fate, unit):
    Q, q, C, low, high = draw(seed, n, rows, fate)
    found = solve(Q, q, C, low, high, Clarabel())
    assert found.status.tolist() == [fate]
    dense = solve(Q, q, C, low, high, InteriorPoint())
    if dense.status.tolist() != [Status.MAX_STEPS]:  # it may have no verdict
        same(found, dense)
    order = torch.randperm(len(C), generator=torch.Generator().manual_seed(seed))
    same(found, solve(Q, q, C[order], low[order], high[order], Clarabel()))
    row = 10.0 ** (unit * torch.linspace(-1, 1, len(C), dtype=torch.float64))
    same(found, solve(Q, q, C * row[:, None], low * row, high * row, Clarabel()))
    same(found, solve(10.0**unit * Q, 10.0**unit * q, C, low, high, Clarabel()))


@pytest.mark.parametrize("seed", range(3))
def test_a_program_does_not_depend_on_its_mates(seed):
    Q, q, C, low, high = draw(seed, 8, 6, Status.CONVERGED)
    mates = torch.stack((2 * q, q, -q))
    together = solve(Q, mates, C, low, high, Clarabel())
    alone = solve(Q, q, C, low, high, Clarabel())
    assert torch.equal(together.value[1], alone.value)
    assert together.steps[1] == alone.steps[0]

"""Sparse programs without a solution: what proves it."""

import pytest
import torch

from tests.optim.quadprog.sparse.banded import banded, t
from torchimplicit import Status, qp
from torchimplicit.optim import Clarabel
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.sparse.certificate import contradiction, prove, ray
from torchimplicit.optim.quadprog.sparse.interior_point import Claim
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix

INF = torch.inf


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_what_has_no_solution_is_proved_at_any_scale(scale):
    values = banded(n=20)
    Q, q, own = values["Q"].to_sparse(), values["q"], torch.ones(20, dtype=torch.float64)
    A = own[None].to_sparse()
    empty = qp(Q, q, A=A, b=t(21.0) * scale, l=-own * scale, u=own * scale, solver=Clarabel(), on_failure="ignore")
    assert empty.status.tolist() == [Status.INFEASIBLE]
    weights = empty.certificate.duals
    assert (A.mT @ weights.equality + weights.bounds).abs().max() <= 1e-9 * weights.equality.abs().max()
    assert 21.0 * weights.equality.sum() + weights.bounds.abs().sum() < 0
    full = qp(Q, q, A=A, b=t(19.5) * scale, l=-own * scale, u=own * scale, solver=Clarabel())
    assert full.report.converged
    A = torch.where(torch.arange(20) < 2, own, 0.0) * torch.where(torch.arange(20) < 1, 1.0, -1.0)
    A = A[None].to_sparse()
    downhill = qp(None, q * scale, A=A, b=t(1.0), l=-own, solver=Clarabel(), on_failure="ignore")
    assert downhill.status.tolist() == [Status.UNBOUNDED]
    ray = downhill.certificate.ray
    assert q @ ray < 0
    assert (A @ ray).abs().max() <= 1e-9 * ray.abs().max()
    assert ray.min() >= 0


def program(rows, lower, upper, q, Q=None):
    rows, q = torch.tensor(rows, dtype=torch.float64), t(*q)
    Q = torch.zeros(len(q), len(q), dtype=torch.float64) if Q is None else torch.diag(t(*Q))
    return Program(SparseMatrix.of(Q), q[None], SparseMatrix.of(rows), t(*lower)[None], t(*upper)[None], 0)


def test_a_claim_that_proves_nothing_is_not_believed():
    crossed = program([[1.0, 1.0], [1.0, 1.0]], (2.0, -INF), (INF, 1.0), (0.0, 0.0))
    assert contradiction(crossed, t(-1.0, 1.0)[None]).tolist() == [[-1.0, 1.0]]
    apart = program([[1.0, 1.0], [1.0, -1.0]], (2.0, -INF), (INF, 1.0), (0.0, 0.0))
    assert contradiction(apart, t(-1.0, 1.0)[None]).tolist() == [[0.0, 0.0]], "they do not cancel"
    touching = program([[1.0, 1.0], [1.0, 1.0]], (1.0, -INF), (INF, 1.0), (0.0, 0.0))
    assert contradiction(touching, t(-1.0, 1.0)[None]).tolist() == [[0.0, 0.0]], "they cancel to zero"
    downhill = program([[1.0, -1.0]], (0.0,), (INF,), (-1.0, 0.0))
    assert ray(downhill, t(1.0, 1.0)[None]).tolist() == [[1.0, 1.0]]
    assert ray(downhill, t(-1.0, -1.0)[None]).tolist() == [[0.0, 0.0]], "uphill"
    assert ray(downhill, t(1.0, 2.0)[None]).tolist() == [[0.0, 0.0]], "against the bound"
    bent = program([[1.0, -1.0]], (0.0,), (INF,), (-1.0, 0.0), Q=(1.0, 0.0))
    assert ray(bent, t(1.0, 1.0)[None]).tolist() == [[0.0, 0.0]], "against the curvature"


def test_a_claim_is_cleared_of_what_a_small_curvature_holds_back():
    q, curvature = (-1.25, 0.014, -0.17, -5e-4, 0.016), (0.0, 9.5e-7, 5.1e-7, 9.6e-7, 0.0)
    endless = program([[1.0, 0.0, 0.0, 0.0, 0.0]], (0.0,), (1.0,), q, Q=curvature)
    found = ray(endless, t(1.5e-8, -3.1e-7, 7.2e-6, 1.1e-8, -1.1e6)[None])
    assert found.tolist() == [[0.0, 0.0, 0.0, 0.0, -1.0]]


def test_nothing_is_proved_against_a_point_that_meets_all_bounds():
    near = program([[1.0, 1.0], [1.0, 1.0]], (1.0 + 1e-10, -INF), (INF, 1.0), (0.0, 0.0))
    claim = Claim(t(0.0, 0.0)[None], t(-1.0, 1.0)[None], Status.INFEASIBLE, 1)
    assert prove(near, claim, t(0.0, 0.0)[None], 50)[0] == Status.INFEASIBLE
    assert prove(near, claim, t(0.5, 0.5)[None], 50)[0] != Status.INFEASIBLE


def test_what_is_claimed_by_mistake_is_looked_into():
    crossed = program([[1.0, 1.0], [1.0, 1.0]], (2.0, -INF), (INF, 1.0), (0.0, 0.0))
    wrong = Claim(t(0.0, 0.0)[None], t(0.0, 0.0)[None], Status.MAX_STEPS, 1)
    status, weights, _ = prove(crossed, wrong, t(0.0, 0.0)[None], 50)
    assert status == Status.INFEASIBLE
    assert (weights / weights.abs().amax()).tolist() == [[-1.0, 1.0]]


def test_weights_are_as_long_as_those_of_dense_programs():
    A, b = t([1.0, 2.0], [2.0, 4.0]), t(1.0, 3.0)
    found = qp(torch.eye(2).double().to_sparse(), t(0.0, 0.0), A=A, b=b, solver=Clarabel(), on_failure="ignore")
    dense = qp(torch.eye(2).double(), t(0.0, 0.0), A=A, b=b, on_failure="ignore")
    assert found.status.tolist() == dense.status.tolist() == [Status.INFEASIBLE]
    torch.testing.assert_close(found.certificate.duals, dense.certificate.duals, rtol=1e-9, atol=1e-12)

"""Sparse programs: the values and verdicts of dense ones, by Clarabel."""

import sys

import pytest
import scipy.optimize
import torch

from tests.optim.quadprog.sparse.banded import MATRICES, banded, loss, sparse, t
from torchimplicit import ConvergenceError, Status, qp
from torchimplicit.optim import Clarabel


def test_ten_thousand_unknowns():
    n = 10_000
    place = torch.arange(n)
    index = torch.cat([torch.stack((place, (place + offset) % n)) for offset in range(10)], 1)
    entries = torch.linspace(0.1, 1.0, 10, dtype=torch.float64).repeat_interleave(n)
    G = torch.sparse_coo_tensor(index, entries, (n, n), check_invariants=True).coalesce().requires_grad_()
    own = torch.ones(n, dtype=torch.float64)
    Q = torch.sparse_coo_tensor(torch.stack((place, place)), own, (n, n), check_invariants=True)
    q = torch.sin(place.double()).requires_grad_()
    solution = qp(Q, q, G, 0.5 * own, l=-0.7 * own)
    assert solution.report.residual.item() <= 1e-9
    z, duals = solution.value.detach(), solution.duals
    slope = z + q.detach() + (G.detach().mT @ duals.inequality.detach()) + duals.bounds.detach()
    assert slope.abs().max() < 1e-10, "stationary, from the definition"
    assert (G.detach() @ z <= 0.5 + 1e-10).all()
    assert duals.inequality.min() >= 0
    assert ((0.5 - G.detach() @ z) * duals.inequality.detach()).abs().max() < 1e-9
    (solution.value**2).sum().backward()
    assert G.grad.is_sparse
    assert G.grad._nnz() == 10 * n
    with torch.no_grad():
        step = 1e-6 * torch.cos(3 * place.double())
        moved = [(qp(Q, q + sign * step, G, 0.5 * own, l=-0.7 * own).value ** 2).sum() for sign in (1, -1)]
    torch.testing.assert_close(q.grad @ step, (moved[0] - moved[1]) / 2, rtol=1e-5, atol=0)


def test_invalid_programs_keep_apart_from_their_mates():
    values = banded(n=20, batch=3)
    values["q"][0, 3] = torch.nan
    values["l"][1] = values["u"][1] + 1.0
    given = sparse(values, "coo")
    solution = qp(**given, solver=Clarabel(), on_failure="ignore")
    assert solution.status.tolist() == [Status.NON_FINITE, Status.INFEASIBLE, Status.CONVERGED]
    loss(solution).backward()
    assert all(x.grad.to_dense().isfinite().all() for x in given.values())
    alone = sparse({name: x if name in MATRICES else x[2:] for name, x in values.items()}, "coo")
    again = qp(**alone, solver=Clarabel())
    assert torch.equal(again.value[0], solution.value[2])
    (again.value * torch.arange(20.0)).sum().backward()
    expected = alone["G"].grad
    given["G"].grad = None
    (qp(**given, solver=Clarabel(), on_failure="ignore").value * torch.arange(20.0)).sum().backward()
    torch.testing.assert_close(given["G"].grad.to_dense(), expected.to_dense())


def test_other_verdicts():
    own = torch.ones(3, dtype=torch.float64)
    kkt = torch.diag(t(1.0, 2.0, -1.0)).to_sparse()
    assert qp(kkt, own, solver=Clarabel(), on_failure="ignore").status.tolist() == [Status.NONCONVEX]
    hidden = t([1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]).to_sparse()  # by its eigenvalues alone
    assert qp(hidden, own, solver=Clarabel(), on_failure="ignore").status.tolist() == [Status.NONCONVEX]
    broken = torch.diag(t(1.0, torch.nan, 1.0)).to_sparse()
    assert qp(broken, own, solver=Clarabel(), on_failure="ignore").status.tolist() == [Status.NON_FINITE]
    with pytest.raises(ConvergenceError, match="by Clarabel"):
        qp(None, own, l=own, A=own[None].to_sparse(), b=t(1.0), solver=Clarabel())
    none = qp(torch.eye(3).double().to_sparse(), own.expand(0, 3), solver=Clarabel())
    assert none.value.shape == (0, 3)


def test_solution_and_multipliers_are_called_unique_each_by_itself():
    eye, own = torch.eye(4, dtype=torch.float64).to_sparse(), torch.ones(4, dtype=torch.float64)
    twice = torch.stack((own, 2 * own)).to_sparse()
    solution = qp(eye, 0 * own, A=twice, b=t(1.0, 2.0), solver=Clarabel())
    assert [x.item() for x in solution.determined] == [True, False]
    edge = {"A": own[None].to_sparse(), "b": t(1.0), "l": 0 * own}
    costs = (-own).requires_grad_()
    solution = qp(None, costs, **edge, solver=Clarabel(), on_failure="ignore")
    assert solution.report.converged
    assert not solution.determined.value.item()
    (by_costs,) = torch.autograd.grad(solution.value.sum(), costs, retain_graph=True)
    assert solution.backward.converged, "every point of the face has this sum"
    assert by_costs.abs().max() < 1e-9
    solution.value[1].backward()
    assert solution.backward.status.tolist() == [Status.STAGNATED]


@pytest.mark.parametrize("seed", range(4))
def test_a_face_of_solutions_is_not_called_one(seed):
    generator = torch.Generator().manual_seed(seed)
    n = 12
    R = torch.randint(-2, 3, (n // 2, n), generator=generator).double()
    y = torch.rand(n // 2, generator=generator, dtype=torch.float64) + 0.1
    box = torch.full((n,), 5.0, dtype=torch.float64)  # with no multiplier: six rows for twelve unknowns
    solution = qp(None, -R.T @ y, R.to_sparse(), torch.ones(n // 2).double(), l=-box, u=box, solver=Clarabel())
    assert solution.report.converged
    assert not solution.determined.value.item()


@pytest.mark.parametrize("seed", range(6))
def test_degenerate_linear_programs_are_solved_to_rounding(seed):
    generator = torch.Generator().manual_seed(seed)
    side = 8  # assignments: fifteen independent equations of sixteen, and many bounds meet in every corner
    eye, one = torch.eye(side, dtype=torch.float64), torch.ones(side, dtype=torch.float64)
    A = torch.cat((eye.repeat_interleave(side, 1), eye.repeat(1, side)))
    costs = torch.rand(side * side, generator=generator, dtype=torch.float64)
    solution = qp(None, costs, A=A.to_sparse(), b=torch.cat((one, one)), l=0 * costs, solver=Clarabel())
    assert solution.residual.item() <= 1e-9
    row, column = scipy.optimize.linear_sum_assignment(costs.reshape(side, side).numpy())
    expected = torch.zeros(side, side, dtype=torch.float64)
    expected[torch.tensor(row), torch.tensor(column)] = 1.0
    torch.testing.assert_close(solution.value.reshape(side, side), expected, rtol=0, atol=1e-9)
    assert [x.item() for x in solution.determined] == [True, False]


def test_a_warm_start_needs_no_clarabel():
    given = sparse(banded(n=40), "coo")
    cold = qp(**given, solver=Clarabel())
    warm = qp(**given, solver=Clarabel(), warm_start=cold)
    assert warm.steps.item() == 0 < cold.steps.item()
    torch.testing.assert_close(warm.value, cold.value, rtol=1e-12, atol=1e-12)


def test_what_has_no_bounds_needs_no_clarabel(monkeypatch):
    values = banded(n=30)
    given = values["Q"].to_sparse(), values["q"]
    monkeypatch.setitem(sys.modules, "clarabel", None)
    solution = qp(*given, A=values["A"], b=values["b"], solver=Clarabel())
    slope = values["Q"] @ solution.value + values["q"] + values["A"].T @ solution.duals.equality
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_differ_by_their_rounding_are_solved_to_rounding(seed):
    """Of such rows each explains the other but for a rounding, which a factor's shift divides by itself."""
    generator = torch.Generator().manual_seed(seed)
    n, k = 12, 4
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    G, z, y = draw(k, n), draw(n), draw(k).abs()
    unit, row = 10 ** (4 * draw(n).clamp(-1, 1)), 10 ** (4 * draw(2 * k).clamp(-1, 1))
    rows = torch.cat((G, -G)) * row[:, None] * unit
    root = draw(n, n - 2)
    Q = root @ root.T
    q = (-(Q @ z) - G.T @ y) * unit
    Q = Q * unit[:, None] * unit
    bounds = torch.cat((G @ z, -(G @ z))) * row
    solution = qp(Q.to_sparse(), q, rows.to_sparse(), bounds, solver=Clarabel())
    assert solution.residual.item() < 1e-12
    if solution.determined.value.item():
        torch.testing.assert_close(solution.value * unit, z, rtol=1e-9, atol=1e-9)

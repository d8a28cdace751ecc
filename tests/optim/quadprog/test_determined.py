"""Whether solution and multipliers are unique, each by itself, and what becomes of derivatives where they are not."""

import pytest
import torch

from tests.fuzz.degenerate import KINDS
from tests.fuzz.dice import Dice
from torchimplicit import Status, qp


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


EYE, ONES = torch.eye(2, dtype=torch.float64), t(1.0, 1.0)


def test_a_solution_is_unique_where_its_multipliers_are_not():
    b = t(1.0, 2.0).requires_grad_()
    q = t(0.3, 0.0).requires_grad_()
    solution = qp(EYE, q, A=t([1.0, 1.0], [2.0, 2.0]), b=b)
    assert solution.determined.value.tolist() == [True]
    assert solution.determined.duals.tolist() == [False]
    by_b, by_q = torch.autograd.grad(solution.value[0], (b, q))
    assert solution.backward.converged
    assert solution.backward.ambiguous.tolist() == [True]
    assert "1 of them one of many" in str(solution.report)
    torch.testing.assert_close(by_b @ t(1.0, 2.0), t(0.5)[0])  # along what keeps the equations consistent
    torch.testing.assert_close(by_q, t(-0.5, 0.5))


def test_where_all_is_unique_nothing_is_said():
    b = t(1.0).requires_grad_()
    solution = qp(EYE, 0 * ONES, A=ONES[None], b=b)
    solution.value[0].backward()
    assert solution.determined.value.tolist() == solution.determined.duals.tolist() == [True]
    assert solution.backward.ambiguous is None
    assert "of many" not in str(solution.report)


def test_of_three_equal_bounds_one_holds_and_the_others_could():
    h = torch.ones(3, dtype=torch.float64, requires_grad=True)
    solution = qp(EYE, t(-1.0, -2.0), torch.ones(3, 2, dtype=torch.float64), h)
    assert solution.determined.duals.tolist() == [False]
    assert int((solution.duals.inequality != 0).sum()) == 1
    solution.value.sum().backward()
    torch.testing.assert_close(h.grad.sum(), t(1.0)[0])


def test_a_solution_that_is_not_unique_has_derivatives_only_where_all_agree():
    costs = t(-1.0, -1.0).requires_grad_()
    edge = {"G": ONES[None], "h": t(1.0), "l": 0 * ONES, "on_failure": "ignore"}
    solution = qp(None, costs, **edge)
    assert solution.status.tolist() == [Status.CONVERGED]
    assert solution.determined.value.tolist() == [False]
    solution.value.sum().backward()
    assert solution.backward.converged, "every point of the edge has this sum"
    assert costs.grad.abs().max() < 1e-9
    again = qp(None, costs, **edge)
    again.value[1].backward()
    assert again.backward.status.tolist() == [Status.STAGNATED]


def test_gradients_of_programs_without_interior_are_those_of_the_equations_they_hide():
    generator = torch.Generator().manual_seed(0)
    a, q = torch.randn(2, 6, generator=generator, dtype=torch.float64), torch.randn(6, generator=generator).double()
    Q = torch.eye(6, dtype=torch.float64)
    found = []
    for rows in ({"A": a, "b": t(0.5, -0.3)}, {"G": torch.cat((a, -3 * a)), "h": t(0.5, -0.3, -1.5, 0.9)}):
        cost = q.clone().requires_grad_()
        value = qp(Q, cost, **rows, l=-torch.ones(6, dtype=torch.float64)).value
        found.append((value.detach(), torch.autograd.grad(value.square().sum(), cost)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("smoothed", [None, 0.1])
def test_what_has_no_solution_determines_none_and_leaves_no_residual_of_zero(smoothed):
    q, low = t([1.0, torch.nan], [1.0, 1.0], [1.0, 1.0]), t([0.0, 0.0], [0.0, 0.0], [2.0, 0.0])
    solution = qp(EYE, q, l=low, u=ONES, smoothed=smoothed, on_failure="ignore")
    assert [Status(s).name for s in solution.status.tolist()] == ["NON_FINITE", "CONVERGED", "INFEASIBLE"]
    assert solution.determined.value.tolist() == solution.determined.duals.tolist() == [False, True, False]
    assert solution.residual.isfinite().tolist() == [False, True, False]


def test_no_direction_is_missed_by_chance():
    """What nothing holds is at right angles, to 1e-3, to the first of the forces that look for it."""
    known = KINDS["repeated rows, in other units"](Dice("repeated rows, in other units 7710000"))
    solution = known.scaled(torch.ones_like(known.z), 1e6 * torch.ones_like(known.l)).solve()
    assert solution.report.converged
    assert solution.determined.value.tolist() == [False]

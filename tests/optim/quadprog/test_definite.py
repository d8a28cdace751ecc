"""Programs with a definite `Q`: what rows leave of a solution that would be far away without them keeps its digits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit import Status
from torchimplicit.optim import qp
from torchimplicit.optim.quadprog.kkt import KKT

SIZE = 3
WHOLE = st.lists(st.integers(-1, 1), min_size=SIZE**2, max_size=SIZE**2)


def corner(curvature, z, entries):
    """A program of whole numbers whose solution is where all of its rows are met, whatever the curvature."""
    z, one = torch.tensor([z], dtype=torch.float64), torch.ones(1, SIZE, dtype=torch.float64)
    rows = 4 * torch.eye(SIZE, dtype=torch.float64) + torch.tensor(entries, dtype=torch.float64).view(SIZE, SIZE)
    Q = curvature * torch.eye(SIZE, dtype=torch.float64)
    return [Q, (-(z @ Q + one @ rows)).requires_grad_(), rows, (z @ rows.mT).requires_grad_()], z


@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 40), st.lists(st.integers(1, 8), min_size=SIZE, max_size=SIZE), WHOLE)
def test_a_corner_is_as_exact_as_its_rows_however_far_away_the_solution_without_them_is(power, point, entries):
    given, z = corner(2.0**-power, point, entries)
    solution = qp(*given)
    by_q, by_h = torch.autograd.grad(solution.value.sum(), (given[1], given[3]))
    expected = torch.linalg.solve(given[2].mT, torch.ones(SIZE, dtype=torch.float64))
    assert (solution.value - z).abs().max() <= 1e-13 * z.max()
    assert (by_h - expected).abs().max() <= 1e-13
    assert by_q.abs().max() <= 1e-12 * z.max() / given[1].abs().max()  # a corner does not move with the cost


def test_a_program_is_refined_beside_others_that_need_it():
    far, z = corner(2.0**-20, [1, 2, 3], [0] * SIZE**2)
    near, _ = corner(1.0, [1, 2, 3], [0] * SIZE**2)
    both = [torch.stack((far[0], near[0])), torch.cat((far[1], near[1])), far[2], torch.cat((far[3], near[3]))]
    solution = qp(*both)
    by_q = torch.autograd.grad(solution.value.sum(), both[1])[0]
    assert (solution.value - z).abs().max() <= 1e-14
    assert by_q.abs().max() <= 1e-13


def test_derivatives_are_refined_where_the_factor_of_the_solution_is_not_at_hand():
    """It is kept where all programs of a batch are solved."""
    (Q, q, rows, h), _ = corner(3.0**-20, [1, 2, 3], [0, 1, 0, 0, 0, -1, 1, 0, 0])
    contradictory = torch.stack((rows[0], -rows[0], rows[2]))
    both = torch.cat((q, q)).detach().requires_grad_()
    h = torch.cat((h, -torch.ones_like(h))).detach()
    solution = qp(Q, both, torch.stack((rows, contradictory)), h, on_failure="ignore")
    assert solution.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE]
    worth = solution.value @ torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    assert torch.autograd.grad(worth.sum(), both)[0].abs().max() <= 1e-13


def test_a_program_solved_from_inside_is_refined_among_others_that_pivoting_solved(monkeypatch):
    """Its last row is at its bound and holds nothing, which pivoting leaves to the interior point."""
    monkeypatch.delattr("torchimplicit.optim.quadprog.search.general")  # which leaves no factor
    z, one = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64)
    rows = torch.tensor([[4.0, 1.0, 0.0], [-1.0, 5.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    Q = torch.stack((3.0**-20 * one, one))
    q = (-(z @ Q).squeeze(1) - rows[0] - rows[1]).requires_grad_()
    h = (z @ rows.mT + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).requires_grad_()
    solution = qp(Q, q, rows, h)
    assert solution.active.inequality.tolist() == [[1, 1, 0]] * 2
    assert (solution.value - z).abs().max() <= 1e-14
    worth = solution.value @ (rows[0] + 2 * rows[1])  # which the rows that are met hold fast
    by_q, by_h = torch.autograd.grad(worth.sum(), (q, h))
    assert by_q.abs().max() <= 1e-13
    assert (by_h - torch.tensor([1.0, 2.0, 0.0])).abs().max() <= 1e-13


def test_a_step_of_care_that_makes_it_worse_is_not_taken():
    """With a factor of a third of the matrix every refinement doubles what is missing."""
    Q = torch.eye(2, dtype=torch.float64)[None]
    kkt = KKT.build(Q, torch.ones(1, 0, 2, dtype=torch.float64), torch.zeros(1, 0), torch.sqrt(Q / 3))
    r, t = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.float64)
    careless = kkt.solve(r, t)
    kkt.careful = True
    assert all(map(torch.equal, kkt.solve(r, t), careless))

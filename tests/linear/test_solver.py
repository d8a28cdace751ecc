"""What every linear solver claims, and takes back."""

import math

import pytest
import torch

import torchimplicit as ti
from torchimplicit.linear import Matrix
from torchimplicit.linear.solver import Progress

S = ti.Status
SOLVERS = [ti.GMRES(), ti.GMRES(opening=False), ti.GMRES(restart=2), ti.BiCGStab(), ti.CG(), ti.LU()]


def matrix(*rows, dtype=torch.float64):
    return Matrix(torch.tensor(rows, dtype=dtype).unsqueeze(0))


def true_residual(operator, x, b):
    return (b - operator.matvec(x)).norm(dim=1) / b.shape[1] ** 0.5


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_singular_system_without_a_solution_is_not_solved(solver):
    operator, b = matrix([1.0, 0.0], [0.0, 0.0]), torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    report = solver.prepare(operator).solve(b).report
    assert not report.converged
    assert math.isfinite(report.residual.item())


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_nearly_singular_system_is_solved_or_said_not_to_be(solver):
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    symmetric = basis @ torch.diag(torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 1e-17], dtype=torch.float64)) @ basis.T
    operator, b = Matrix(symmetric.unsqueeze(0)), torch.ones(1, 6, dtype=torch.float64)
    x, report = solver.prepare(operator).solve(b)
    if report.converged:
        assert true_residual(operator, x, b).item() <= 2e-4


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_right_hand_side_that_is_not_finite_is_a_status_of_its_own(solver):
    operator = Matrix(torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    b = torch.tensor([[math.nan, 1.0], [1.0, 2.0]], dtype=torch.float64)
    x, report = solver.prepare(operator).solve(b)
    assert report.status.tolist() == [S.NON_FINITE, S.CONVERGED]
    assert torch.allclose(x[1], b[1])


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_right_hand_side_of_zero_is_solved_by_zero(solver):
    x, report = solver.prepare(matrix([2.0, 0.0], [0.0, 1.0])).solve(torch.zeros(1, 2, dtype=torch.float64))
    assert report.converged
    assert x.tolist() == [[0.0, 0.0]]


def test_an_operator_that_does_not_suit_the_method_is_told():
    rotation = matrix([0.0, 1.0], [-1.0, 0.0])  # every curvature is zero
    b = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for solver in (ti.CG(), ti.BiCGStab()):
        assert solver.prepare(rotation).solve(b).report.status.tolist() == [S.STAGNATED]
    assert ti.GMRES().prepare(rotation).solve(b).report.converged


def test_a_series_that_grows_is_no_solution():
    b = torch.ones(2, 1, dtype=torch.float64)
    operator = Matrix(torch.tensor([[[0.5]], [[2.5]]], dtype=torch.float64))  # I - A: 0.5 and -1.5
    report = ti.Neumann(terms=12).prepare(operator).solve(b).report
    assert report.status.tolist() == [S.CONVERGED, S.DIVERGED]
    assert report.residual.tolist() == pytest.approx([0.5**12, 1.5**12])


@pytest.mark.parametrize("solver", [ti.GMRES(rtol=1e-10), ti.BiCGStab(rtol=1e-10), ti.LU()], ids=str)
def test_the_transpose_is_solved_by_the_transpose(solver):
    operator, b = matrix([1.0, 0.7], [0.0, 0.8]), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    prepared = solver.prepare(operator)
    assert torch.allclose(operator.matvec(prepared.solve(b).x), b)
    assert torch.allclose(operator.rmatvec(prepared.solve_transpose(b).x), b)


def test_progress_takes_back_what_true_residuals_refute():
    b = torch.ones(3, 1, dtype=torch.float64)
    progress = Progress(b, 1e-2)
    progress.update(1, torch.tensor([1e-3, 1e-3, 0.5], dtype=torch.float64))
    assert progress.status.tolist() == [S.CONVERGED, S.CONVERGED, S.MAX_STEPS]
    assert progress.running.tolist() == [False, False, True]
    assert progress.reopen(torch.tensor([1.9e-2, 2.1e-2, 0.5], dtype=torch.float64))  # twice the target is play
    assert progress.running.tolist() == [False, True, True]
    progress.give_up()
    assert progress.status.tolist() == [S.CONVERGED, S.STAGNATED, S.MAX_STEPS]


def test_progress_stops_what_breaks_down_and_what_is_not_finite():
    progress = Progress(torch.ones(3, 1, dtype=torch.float64), 1e-2)
    progress.update(1, torch.tensor([0.5, 1e-3, math.nan], dtype=torch.float64), torch.tensor([True, True, False]))
    assert progress.status.tolist() == [S.STAGNATED, S.CONVERGED, S.NON_FINITE]
    assert not progress.going
    report = progress.result(torch.zeros(3, 1), 4).report
    assert report.steps.tolist() == [1, 1, 1]
    assert report.residual.tolist() == [0.5, 1e-3, 1.0]  # the last finite one


@pytest.mark.parametrize("smallest", [1e-10, 1e-13, 1e-15])
@pytest.mark.parametrize("solver", [ti.GMRES(rtol=1e-10, opening=False), ti.GMRES(rtol=1e-6), ti.LU()], ids=str)
def test_what_rounding_hides_is_not_claimed(solver, smallest):
    promised = getattr(solver, "rtol", 1e-8)
    values = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, smallest], dtype=torch.float64)
    for seed in range(8):
        noise = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        left, right = torch.linalg.qr(noise)[0]
        operator, b = Matrix((left @ torch.diag(values) @ right).unsqueeze(0)), torch.ones(1, 6, dtype=torch.float64)
        x, report = solver.prepare(operator).solve(b)
        if report.converged:
            assert true_residual(operator, x, b).item() <= 2.5 * promised, f"seed {seed}"


def test_richardsons_opening_leaves_what_it_expands_at_once():
    matrix = torch.diag_embed(torch.linspace(2.5, 3.5, 8, dtype=torch.float64)).expand(3, 8, 8)
    b = torch.ones(3, 8, dtype=torch.float64)
    products = [
        ti.GMRES(rtol=1e-10, opening=opening).prepare(Matrix(matrix)).solve(b).report.nfev for opening in (False, True)
    ]
    assert products[1] <= products[0] + 1

"""What every linear solver must keep."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.linear import LinearSolver, Matrix


def check_linear_solver(solver: LinearSolver, tolerance: float = 1e-8, symmetric: bool = False) -> None:
    """Holds a linear solver to the contract, for `A` and for its transpose, over kinds of matrices and dtypes.

    Solutions have the residual that their tolerance promises, samples are independent to the bit, a zero right-hand
    side gives zero, and a singular or non-finite system is reported.

    Args:
        solver: the solver, at a relative tolerance below `tolerance` in float64.
        tolerance: largest relative residual to accept in float64; float32 is held to 1e-4.
        symmetric: give it symmetric positive definite matrices only.

    Raises:
        AssertionError: something does not hold.
    """
    for copied in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert copied == solver, "a linear solver is a plain value"
    for name, matrix in _matrices(symmetric).items():
        for dtype, bound in ((torch.float64, tolerance), (torch.float32, max(tolerance, 1e-4))):
            reachable = solver
            if dtype is torch.float32 and hasattr(solver, "rtol"):
                reachable = replace(solver, rtol=bound)
            for transpose in (False, True):
                _check_system(reachable, matrix.to(dtype), bound, transpose, name)
    _check_independence(solver, _matrices(symmetric)["well conditioned"])
    _check_hopeless(solver, symmetric)


def _matrices(symmetric: bool) -> dict[str, Tensor]:
    """Batches `(4, 6, 6)` near and far from the identity."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.float64)
    if symmetric:
        return {
            "well conditioned": eye + 0.05 * random @ random.mT,
            "graded": torch.diag_embed(random[:, 0].abs() + 0.1),
        }
    rotation = torch.matrix_exp(random - random.mT)
    return {
        "well conditioned": eye + 0.1 * random,
        "non-normal": eye + 0.5 * random.triu(1),
        "rotation": eye - 0.9 * rotation,
    }


def _solve(solver: LinearSolver, matrix: Tensor, b: Tensor, transpose: bool):
    prepared = solver.prepare(Matrix(matrix))
    return prepared.solve_transpose(b) if transpose else prepared.solve(b)


def _check_system(solver: LinearSolver, matrix: Tensor, bound: float, transpose: bool, name: str) -> None:
    b = torch.linspace(-1, 1, matrix.shape[0] * matrix.shape[1], dtype=matrix.dtype).view(matrix.shape[:2]).clone()
    b[0] = 0
    x, report = _solve(solver, matrix, b, transpose)
    system = matrix.mT if transpose else matrix
    residual = (b - (system @ x.unsqueeze(2)).squeeze(2)).norm(dim=1)
    where = f"{name}, {matrix.dtype}, transpose={transpose}"
    assert x.dtype == b.dtype, where
    assert (x[0] == 0).all(), f"{where}: a zero right-hand side has the solution zero"
    assert (residual <= bound * b.norm(dim=1)).all(), f"{where}: relative residuals {residual / b.norm(dim=1)}"
    assert report.converged, f"{where}: {report}"
    reported = report.residual * b.shape[1] ** 0.5
    slack = 100 * torch.finfo(b.dtype).eps * (b.norm(dim=1) + matrix.norm() * x.norm(dim=1))
    assert ((reported - residual).abs() <= slack + 0.1 * residual).all(), (
        f"{where}: the reported residual is not the true one"
    )


def _check_independence(solver: LinearSolver, matrix: Tensor) -> None:
    b = torch.linspace(-1, 1, matrix.shape[0] * matrix.shape[1], dtype=matrix.dtype).view(matrix.shape[:2])
    good, report = _solve(solver, matrix, b, False)
    others = [0, 1, 3]
    for bad in (torch.zeros_like(matrix[2]), torch.full_like(matrix[2], torch.nan)):
        worse = matrix.clone()
        worse[2] = bad
        x, bad_report = _solve(solver, worse, b, False)
        assert torch.equal(x[others], good[others]), "samples depend on their batch mates"
        assert torch.equal(bad_report.steps[others], report.steps[others])
        assert bad_report.status[2] != Status.CONVERGED, f"a system without solution is reported: {bad_report}"


def _check_hopeless(solver: LinearSolver, symmetric: bool) -> None:
    """Systems without a solution, exactly or but for rounding: nobody may claim to have solved them."""
    centred = torch.eye(3, dtype=torch.float64) - 1 / 3
    counted = torch.arange(1.0, 10.0, dtype=torch.float64).view(3, 3)
    for matrix in [centred] if symmetric else [centred, counted]:
        b = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
        x, report = _solve(solver, matrix[None], b, False)
        assert not report.converged, f"a singular system is not solved: {report}"
        residual = (b - x @ matrix.mT).norm() / 3**0.5
        assert x.norm() == torch.inf or not residual.isfinite() or (report.residual - residual).abs() < 1e-2 * residual

"""Backward solves: which residuals are rounding, and what becomes of solutions that are not finite."""

import torch

import torchimplicit as ti


def test_a_badly_scaled_system_that_a_direct_solver_has_solved_is_not_refuted():
    """The residual is large in the units of some row; every number of the solution is right to rounding."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(3) + 0.3 * torch.randn(100, 3, 3, generator=generator)
    matrix = matrix * 10 ** (8 * torch.rand(100, 1, 3, generator=generator) - 4)
    z, grad = torch.randn(2, 100, 3, generator=generator)
    shift = torch.zeros_like(z, requires_grad=True)
    solution = ti.root(
        lambda y, matrix, shift: torch.bmm(matrix, (y - z).unsqueeze(2)).squeeze(2) + shift,
        z.clone(), matrix, shift, solver=ti.Newton(), adjoint=ti.Implicit(ti.LU()),
    )  # fmt: skip
    solution.value.backward(grad)
    assert solution.backward.residual.max() > 1e-2
    exact = -torch.linalg.solve(matrix.mT.double(), grad.double())
    torch.testing.assert_close(shift.grad.double(), exact, rtol=1e-5, atol=0)


def test_inside_transforms_a_singular_sample_adds_nothing_either():
    """There is no quarantine there: its solution, which is not finite, counts as zero."""
    x, slope = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.5], [1.0]]).double()

    def loss(w):
        solution = ti.fixed_point(
            lambda z, x, slope, w: slope * z + w * x, torch.zeros_like(x), x, slope, w,
            adjoint=ti.Implicit(ti.LU()), on_failure="ignore",
        )  # fmt: skip
        return solution.value.sum()

    assert torch.func.grad(loss)(torch.tensor(1.0).double()).item() == 2

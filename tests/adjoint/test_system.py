"""Backward solves: which residuals are rounding, and what becomes of solutions that are not finite."""

import torch

import torchimplicit as ti


def test_a_badly_scaled_system_has_converged_only_where_products_with_its_solution_are_right():
    """Every number of the solution is right to rounding; where its products cancel, gradients by them are wrong."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(3) + 0.3 * torch.randn(100, 3, 3, generator=generator)
    matrix = matrix * 10 ** (8 * torch.rand(100, 1, 3, generator=generator) - 4)
    z, grad = torch.randn(2, 100, 3, generator=generator)
    z, shift = z.requires_grad_(), torch.zeros_like(z, requires_grad=True)
    solution = ti.root(
        lambda y, matrix, z, shift: torch.bmm(matrix, (y - z).unsqueeze(2)).squeeze(2) + shift,
        z.detach().clone(), matrix, z, shift, adjoint=ti.Implicit(ti.LU()), on_failure="ignore",
    )  # fmt: skip
    solution.value.backward(grad)
    exact = -torch.linalg.solve(matrix.mT.double(), grad.double())
    torch.testing.assert_close(shift.grad.double(), exact, rtol=1e-5, atol=0)
    wrong = ((z.grad - grad).norm(dim=1) / grad.norm(dim=1)) > 1e-2
    assert wrong.any()
    converged = solution.backward.status == ti.Status.CONVERGED
    assert converged.any()
    assert not (converged & wrong).any()
    assert (solution.backward.status[wrong] == ti.Status.STAGNATED).all()


def test_units_alone_refute_no_direct_solution():
    """The residual is large in the units of some row, and little beside every right-hand side."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(3) + 0.3 * torch.randn(100, 3, 3, generator=generator)
    units = 10 ** (12 * torch.rand(100, 3, generator=generator) - 6)
    matrix, a = units[:, :, None] * matrix.double() / units[:, None], torch.zeros(100, 3).double().requires_grad_()
    solution = ti.root(
        lambda y, matrix, a: torch.bmm(matrix, y.unsqueeze(2)).squeeze(2) - a, torch.zeros_like(a), matrix, a
    )
    grad = torch.randn(100, 3, generator=generator).double() / units
    solution.value.backward(grad)
    assert solution.backward.converged
    torch.testing.assert_close(a.grad, torch.linalg.solve(matrix.mT, grad), rtol=1e-6, atol=0)


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

"""Backpropagation through the steps: what stopped samples must not do to the others."""

import pytest
import torch

import torchimplicit as ti

SOLVERS = [ti.Picard(max_steps=400), ti.Anderson(max_steps=400), ti.Broyden(max_steps=400)]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_sample_that_overflows_after_it_has_stopped_reaches_no_gradient(solver, checkpoint):
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0], [7.0]], dtype=torch.float64)

    def f(z, weight, x):
        return torch.where(x > 1, 3 * z + weight * z**2 + 1, 0.97 * z + weight)

    solution = ti.fixed_point(
        f, torch.zeros_like(x), weight, x, solver=solver, adjoint=ti.Unrolled(checkpoint), on_failure="ignore"
    )
    assert solution.status[0] == ti.Status.CONVERGED
    (grad,) = torch.autograd.grad(solution.value[0].sum(), weight)
    assert abs(float(grad) - 1 / 0.03) < 0.2


def test_newton_goes_on_beside_a_sample_that_has_arrived():
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[0.0], [3.0]], dtype=torch.float64)  # the first starts at a root where the slope is zero
    solution = ti.root(lambda z, w: w * z**2 * (z - 2), start, weight, adjoint=ti.Unrolled())
    assert solution.report.converged
    (grad,) = torch.autograd.grad(solution.value.sum(), weight)
    assert abs(float(grad)) < 1e-8

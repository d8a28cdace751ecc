"""Derivatives: which factor they are solved with."""

import pytest
import torch

from torchimplicit.optim import qp

G, h = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 3])
def test_the_factor_of_a_solve_serves_no_batch_but_its_own(count):
    """Under `torch.vmap` every program may have matrices of its own, also where there are as many as before."""
    Q = torch.diag_embed(torch.tensor([[1.0, 3.0], [2.0, 5.0], [7.0, 1.0]]).double())
    q = torch.tensor([[-4.0, 1.0]], dtype=torch.float64).requires_grad_()
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    v = torch.linspace(1, 2, count, dtype=torch.float64)[:, None, None] * weight

    def gradient(v, value):
        return torch.autograd.grad(value, q, v, retain_graph=True)[0]

    for matrix in Q:
        value = qp(matrix, q, G, h).value
        together = torch.vmap(gradient, (0, None))(v, value)
        torch.testing.assert_close(together, torch.stack([gradient(one, value) for one in v]))
    mapped = torch.vmap(torch.func.grad(lambda Q, q: qp(Q, q, G, h).value @ weight, 1), (0, None))(Q, q[0].detach())
    for matrix, found in zip(Q, mapped, strict=True):
        torch.testing.assert_close(found, gradient(weight[None], qp(matrix, q, G, h).value)[0])


def test_a_solve_leaves_its_factor_to_the_derivative(monkeypatch):
    q = torch.tensor([[-4.0, 1.0], [2.0, 1.0]], dtype=torch.float64).requires_grad_()
    value = qp(torch.eye(2, dtype=torch.float64), q, G, h).value
    monkeypatch.delattr("torch.linalg.cholesky_ex")
    assert torch.autograd.grad(value.sum(), q)[0].isfinite().all()

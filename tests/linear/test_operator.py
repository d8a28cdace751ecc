"""Operators: products agree with the matrices that they stand for, and with their transposes."""

import pytest
import torch

from torchimplicit.linear import IdentityMinus, Jacobian, LinearOperator, Matrix


def cell(z):
    weight = torch.linspace(-1, 1, 16, dtype=z.dtype).view(4, 4)
    return torch.tanh(z @ weight) + 0.1 * z**2


@pytest.fixture
def point():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def expected(point):
    return torch.stack([torch.autograd.functional.jacobian(cell, row) for row in point])


def test_jacobian_products_agree_with_the_matrices(point, expected):
    jacobian = Jacobian(cell, point)
    v = torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4)
    assert torch.allclose(jacobian.matvec(v), torch.einsum("bij,bj->bi", expected, v))
    assert torch.allclose(jacobian.rmatvec(v), torch.einsum("bij,bi->bj", expected, v))
    assert torch.allclose(jacobian.dense(v), expected)


def test_every_operator_passes_its_own_check(point, expected):
    torch.manual_seed(0)
    for operator in (Jacobian(cell, point), IdentityMinus(Jacobian(cell, point)), Matrix(expected)):
        assert (operator.check_adjoint(point) < 1e-10).all()


def test_a_wrong_transpose_is_found(point, expected):
    class Wrong(Matrix):
        def rmatvec(self, v):
            return self.matvec(v)

    assert (Wrong(expected).check_adjoint(point) > 1e-3).any()


def test_identity_minus_is_built_from_its_products(point, expected):
    dense = IdentityMinus(Matrix(expected)).dense(point)
    assert torch.allclose(dense, torch.eye(4, dtype=torch.float64) - expected)


def test_a_function_that_does_not_depend_on_its_point_has_a_zero_jacobian(point):
    jacobian = Jacobian(lambda z: torch.ones_like(z), point)
    for product in (jacobian.matvec, jacobian.rmatvec):
        assert (product(point) == 0).all()
    assert (jacobian.dense(point) == 0).all()


def test_products_are_differentiable_while_grad_is_enabled(point):
    z = point.requires_grad_()
    v = torch.ones_like(point)
    for name in ("matvec", "rmatvec"):
        assert torch.autograd.gradcheck(lambda z, name=name: getattr(Jacobian(cell, z), name)(v), (z,))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected \(B, n, n\)"):
        Matrix(torch.zeros(3, 4))
    with pytest.raises(NotImplementedError):
        LinearOperator().matvec(torch.zeros(1, 1))

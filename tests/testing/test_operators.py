"""The contract of linear operators finds what is wrong with one."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.testing import check_operator

X = torch.zeros(2, 6, dtype=torch.float64)


class Mean(ti.imaging.Operator):
    """Pairs of neighbours, averaged; ten lines of a user's, of which a test spoils one."""

    def A(self, x):
        return (x[:, 1:] + x[:, :-1]) / 2

    def A_adjoint(self, y):
        return (torch.nn.functional.pad(y, (1, 0)) + torch.nn.functional.pad(y, (0, 1))) / 2


class Affine(Mean):
    def A(self, x):
        return super().A(x) + 1


class Absolute(Mean):
    def A(self, x):
        return super().A(x).abs()


class Inverse(Mean):
    """Other libraries' favourite: something like an inverse for the adjoint."""

    def A_adjoint(self, y):
        return torch.nn.functional.pad(y, (1, 0))


class Shaped(Mean):
    def A_adjoint(self, y):
        return super().A_adjoint(y)[:, :5]


class Scale(Mean):
    def gram(self, x):
        return 1.01 * super().gram(x)


class Norm(Mean):
    def norm(self, like=None, rtol=1e-3, max_steps=64):
        return torch.full((len(like),), 2.0, dtype=like.dtype)


class Isometry(Mean):
    coisometry = 1.0


class Mates(Mean):
    def A(self, x):
        return super().A(x) - super().A(x).mean(0, keepdim=True)


class Double(Mean):
    def A(self, x):
        return super().A(x).double()


class Prox(Mean):
    def prox(self, z, y, step, solver=None, on_failure="warn"):
        return z


class Dagger(Mean):
    def A_dagger(self, y, damping=0.0, solver=None, on_failure="warn"):
        return self.A_adjoint(y)


class Conjugate(Mean):
    """Linear over real numbers only."""

    def A(self, x):
        return super().A(x).conj()

    def A_adjoint(self, y):
        return super().A_adjoint(y).conj()


def test_it_lets_a_right_one_pass():
    check_operator(Mean(), X)
    check_operator(Mean(), X.to(torch.complex128))


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (Affine(), "A is not linear"),
        (Absolute(), "A is not linear"),
        (Inverse(), "A_adjoint is no adjoint"),
        (Shaped(), r"A_adjoint|size of tensor"),
        (Scale(), r"gram is not A_adjoint\(A\(x\)\)"),
        (Norm(), "norm is not the largest singular value"),
        (Isometry(), r"A A\^H is not coisometry"),
        (Mates(), "adjoint|batch mates"),
        (Double(), "expected single precision"),
        (Prox(), "prox does not solve"),
        (Dagger(), "A_dagger does not solve"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_finds_what_is_wrong(operator, words):
    with pytest.raises((AssertionError, RuntimeError), match=words):
        check_operator(operator, X)


def test_complex_images_are_complex_numbers():
    check_operator(Conjugate(), X)
    with pytest.raises(AssertionError, match="A is not linear"):
        check_operator(Conjugate(), X.to(torch.complex128))


def test_what_cannot_be_checked():
    with pytest.raises(TypeError, match="got a builtin_function_or_method, expected something with A"):
        check_operator(abs, X)
    with pytest.raises(ValueError, match="expected two samples or more in double precision"):
        check_operator(Mean(), X.float())

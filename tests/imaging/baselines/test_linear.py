"""The adjoint and regularised least squares: against dense matrices, with gradients, also where A is trivial."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.imaging import Blur, Inpainting, Sense, cg_sense, zero_filled

TIGHT = ti.CG(rtol=1e-12, max_steps=400)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def coils():
    return Sense(random(3, 6, 5, dtype=torch.complex128), torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)[:, None])


def test_zero_filled_is_the_adjoint():
    op = coils()
    y = op.A(random(2, 6, 5, dtype=torch.complex128))
    assert torch.equal(zero_filled(y, op), op.A_adjoint(y))


def test_least_squares_are_those_of_the_dense_matrix():
    op = coils()
    y = random(2, 3, 6, 5, dtype=torch.complex128, seed=1)
    A = op.A(torch.eye(30, dtype=torch.complex128).view(30, 6, 5)).flatten(1).T
    weight = torch.tensor([0.1, 2.0], dtype=torch.float64)
    found = cg_sense(y, op, weight=weight, solver=TIGHT)
    for i in range(2):
        system = A.mH @ A + weight[i] * torch.eye(30)
        expected = torch.linalg.solve(system, A.mH @ y[i].flatten())
        assert torch.allclose(found.value[i].flatten(), expected, atol=1e-10)
    assert found.report.converged


@pytest.mark.parametrize(
    "op",
    [
        Blur(torch.ones(1, 1, dtype=torch.float64)),
        Inpainting(torch.tensor([[[True, False, True, True]]])),
        Inpainting(torch.ones(1, 1, 4, dtype=torch.bool)),
    ],
    ids=["one tap", "nothing of some pixels", "identity"],
)
def test_gradients_where_the_operator_is_trivial(op):
    y = op.A(random(2, 1, 1, 4)).requires_grad_()
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = cg_sense(y, op, weight=weight, solver=TIGHT).value
    assert torch.allclose(x, op.A_adjoint(y) / 1.5)
    by_y, by_weight = torch.autograd.grad(x.sum(), (y, weight))
    assert torch.allclose(by_y, torch.full_like(y, 1 / 1.5))
    assert torch.allclose(by_weight, -op.A_adjoint(y).sum() / 1.5**2)


def test_gradients_by_maps_and_everything():
    mask = torch.tensor([True, False, True])[:, None]
    leaves = [
        random(1, 2, 3, 2, dtype=torch.complex128, seed=1),
        torch.tensor(0.3, dtype=torch.float64),
        random(2, 3, 2, dtype=torch.complex128),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def solved(y, weight, maps):
        return torch.view_as_real(cg_sense(y, Sense(maps, mask), weight=weight, solver=TIGHT).value)

    assert torch.autograd.gradcheck(solved, leaves)


def test_too_few_steps_are_said():
    op = coils()
    y = op.A(random(1, 6, 5, dtype=torch.complex128))
    with pytest.warns(ti.ConvergenceWarning):
        found = cg_sense(y, op, weight=1e-6, solver=ti.CG(rtol=1e-10, max_steps=2))
    assert found.status.tolist() != [0]
    with pytest.raises(ti.ConvergenceError):
        cg_sense(y, op, weight=1e-6, solver=ti.CG(rtol=1e-10, max_steps=2), on_failure="raise")


class Counting:
    """A diagonal operator that counts its products, with as many eigenvalues as a sample has entries that differ."""

    def __init__(self, diagonal):
        self.diagonal = diagonal

    def A(self, x):
        return self.diagonal * x

    A_adjoint = A


def test_steps_are_those_of_conjugate_gradients():
    """As many as there are eigenvalues, of each sample."""
    diagonal = torch.tensor([[1.0, 1, 1, 1], [1, 2, 2, 1], [1, 2, 3, 4]], dtype=torch.float64)
    found = cg_sense(random(3, 4), Counting(diagonal), weight=0.1, solver=TIGHT)
    assert found.report.converged
    assert found.steps.tolist() == [1, 2, 4]


def test_a_sample_that_is_not_finite_disturbs_no_other():
    op = coils()
    y = op.A(random(3, 6, 5, dtype=torch.complex128))
    bad = y.clone()
    bad[1, 0, 0, 0] = torch.nan
    good, mixed = (cg_sense(each, op, weight=0.1, on_failure="ignore") for each in (y, bad))
    assert mixed.status.tolist() == [0, int(ti.Status.NON_FINITE), 0]
    assert torch.equal(mixed.value[[0, 2]], good.value[[0, 2]])


def test_bad_input():
    op = coils()
    y = op.A(random(1, 6, 5, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"cg_sense\(weight=0\): expected a finite number > 0"):
        cg_sense(y, op, weight=0)
    with pytest.raises(TypeError, match="expected an operator"):
        zero_filled(y, None)
    with pytest.raises(TypeError, match="expected a floating or complex"):
        zero_filled(torch.ones(1, 3, 6, 5, dtype=torch.int32), op)
    with pytest.raises(ValueError, match="got measurements"):
        zero_filled(y[:, :2], op)

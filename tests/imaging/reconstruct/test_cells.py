"""The cells: what their fixed points are, and what they claim of the way there."""

import math

import pytest
import torch

import torchimplicit as ti
from tests.imaging.reconstruct.measuring import blur, coils, images
from torchimplicit.imaging import (
    ADMM,
    Blur,
    DnCNN,
    DouglasRachford,
    Gradient,
    GradientStep,
    HalfQuadratic,
    Prior,
    Proximal,
    Reconstruction,
    Ridge,
    averaged,
)

TIGHT = ti.Anderson(rtol=1e-11, atol=1e-13, max_steps=2000)


def ridge(**options):
    return Ridge(**{"filters": 4, "taps": 3, "saturation": 0.05} | options).double()


def mean():
    """A firmly nonexpansive network that is no gradient, whose fixed points attract."""
    return averaged(DnCNN(width=6, depth=3, bound=0.9, skip=False).double())


def solved(cell, y, op, solver=TIGHT, **options):
    return ti.fixed_point(cell, cell.start(y, op), y, op, solver=solver, **options)


class Quadratic(Prior):
    """`|x|^2 / 2`, whose minima are known."""

    convex = True

    def forward(self, v):
        return 0 * v

    def lipschitz(self):
        return 1.0


@pytest.mark.parametrize("weight", [None, 0.3])
def test_the_gradients_fixed_point_is_the_minimum(weight):
    op, eps = blur(), 0.02
    y = op.A(images())
    found = solved(Gradient(Quadratic(), weight=weight, eps=eps).double(), y, op)
    total = (1.0 if weight is None else weight) + eps
    torch.testing.assert_close(found.value, op.prox(torch.zeros_like(y), y, 1 / total), rtol=1e-6, atol=1e-8)


def test_it_does_not_depend_on_the_step():
    op, prior = blur(), ridge()
    y = op.A(images())
    safe, given = (solved(Gradient(prior, eps=0.01, step=step).double(), y, op).value for step in (None, 0.3))
    torch.testing.assert_close(safe, given, rtol=1e-7, atol=1e-9)


def test_complex_images_come_to_their_minimum_too():
    op, prior, eps = coils(), ridge(), 0.01
    y = op.A(torch.complex(images(), 0.3 * images(seed=1)).squeeze(1))
    x = solved(Gradient(prior, eps=eps).double(), y, op).value.detach().requires_grad_()
    energy = 0.5 * (op.A(x) - y).abs().square().sum() + prior.energy(x).sum() + 0.5 * eps * x.abs().square().sum()
    (slope,) = torch.autograd.grad(energy, x)
    assert slope.abs().max() < 1e-6


CELLS = {
    "gradient": lambda: Gradient(ridge(), eps=0.05),
    "proximal": lambda: Proximal(ridge(), eps=0.05),
    "proximal of a network": lambda: Proximal(mean(), step=0.7, eps=0.05),
    "half quadratic": lambda: HalfQuadratic(ridge(), eps=0.05),
    "douglas": lambda: DouglasRachford(ridge(), step=3.0, eps=0.05),
    "douglas of a network": lambda: DouglasRachford(mean(), eps=0.05),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_contracts_as_it_claims(name):
    op, cell = blur(n=6), CELLS[name]().double()
    y = op.A(images(1, 6))
    for seed in range(3):
        z = 3 * torch.randn(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        jacobian = torch.autograd.functional.jacobian(lambda z: cell(z, y, op), z).reshape(36, 36)
        bound = float(torch.as_tensor(cell.contraction(op, z)).detach())
        assert torch.linalg.matrix_norm(jacobian, 2) <= bound + 1e-9
        assert bound < 1
    assert torch.allclose(jacobian, jacobian.mT) == cell.symmetric


@pytest.mark.parametrize("name", [name for name in CELLS if "network" not in name])
def test_without_a_proof_none_is_claimed(name):
    op, cell = blur(n=6), CELLS[name]().double()
    cell.eps = 0.0
    assert float(torch.as_tensor(cell.contraction(op, images(1, 6))).detach()) >= 1 - 1e-12
    if not isinstance(cell, Gradient):
        cell.eps, cell.prior = 0.05, DnCNN(width=4, depth=2).double()
        assert cell.contraction(op, images(1, 6)) == math.inf


def test_a_step_that_is_too_long_is_claimed_to_be_none():
    assert float(Gradient(ridge(), eps=0.1, step=50.0).double().contraction(blur(), images())) > 1


@pytest.mark.parametrize("make", [ridge, mean])
def test_admm_and_douglas_rachford_come_to_one_image(make):
    op, prior = blur(), make()
    y = op.A(images())
    admm, douglas = (kind(prior, eps=0.01).double() for kind in (ADMM, DouglasRachford))
    pair, single = solved(admm, y, op), solved(douglas, y, op)
    x = admm.output(pair.value, y, op)
    torch.testing.assert_close(x, douglas.output(single.value, y, op), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(prior(x + pair.value[1]), x, rtol=1e-6, atol=1e-8)


def test_admms_implicit_gradient_is_that_of_unrolling():
    op, cell = blur(), ADMM(mean(), step=10.0).double()
    y = (op.A(images()) + 0.01).detach()
    tensors = [*cell.parameters(), *op.parameters()]

    def gradient(solver, adjoint):
        return torch.autograd.grad(solved(cell, y, op, solver, adjoint=adjoint).value[0].square().mean(), tensors)

    exact = gradient(ti.Anderson(rtol=1e-12, atol=1e-14, max_steps=500), ti.Implicit(ti.GMRES(rtol=1e-12, restart=60)))
    unrolled = gradient(ti.Picard(rtol=1e-13, atol=1e-14, max_steps=3000), ti.Unrolled())
    for ours, theirs in zip(exact, unrolled, strict=True):
        assert (ours - theirs).norm() <= 1e-8 * theirs.norm()


@pytest.mark.parametrize("kind", [Proximal, HalfQuadratic, DouglasRachford, ADMM])
def test_the_step_is_learned(kind):
    op, cell = blur(), kind(mean(), eps=0.05).double()
    y = op.A(images()).detach()
    step = next(parameter for name, parameter in cell.named_parameters() if "step" in name)

    def loss():
        found = solved(cell, y, op, adjoint=ti.Implicit(ti.GMRES(rtol=1e-10)))
        return cell.output(found.value, y, op).square().sum()

    (slope,) = torch.autograd.grad(loss(), step)
    with torch.no_grad():
        values = []
        for shift in (1e-4, -2e-4):
            step += shift
            values.append(loss())
    assert slope.item() == pytest.approx((values[0] - values[1]).item() / 2e-4, rel=1e-4)


def test_eps_draws_to_zero_and_makes_it_shorter():
    op, prior = blur(width=4), ridge()
    y = op.A(images())
    free, held = (solved(Gradient(prior, eps=eps).double(), y, op) for eps in (1e-4, 0.1))
    assert held.value.norm() < free.value.norm()
    assert held.steps.max() < free.steps.max()


class Bare:
    """An operator that knows two things only, of norm 3."""

    def A(self, x):
        return 3 * x.roll(1, -1)

    def A_adjoint(self, y):
        return 3 * y.roll(-1, -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_any_pair_of_a_map_and_its_adjoint_is_an_operator(dtype):
    cell, op = Gradient(ridge(), eps=0.01).double(), Bare()
    x = images().to(dtype)
    assert cell.square(op, x).tolist() == pytest.approx([9, 9])
    torch.testing.assert_close(cell.start(op.A(x), op), x)
    assert solved(cell, op.A(x), op, on_failure="raise").report.converged
    with pytest.raises(TypeError, match="without prox"):
        solved(HalfQuadratic(ridge()).double(), op.A(x), op)


def test_a_step_too_long_for_the_operator_is_named():
    cell, op = Proximal(ridge(), step=1.5).double(), Bare()
    with pytest.raises(ti.ConvergenceError, match=r"norm 3, expected < 0\.22"):
        solved(cell, op.A(images()), op, ti.Picard(max_steps=200))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Gradient(torch.nn.Identity()), TypeError, "averaged"),
        (lambda: Gradient(ridge(), eps=-1.0), ValueError, "eps"),
        (lambda: Gradient(ridge(), step=0.0), ValueError, "step"),
        (lambda: Gradient(ridge(), weight=0.0), ValueError, "weight"),
        (lambda: Gradient(DnCNN()), ValueError, "try step=0.5"),
        (lambda: Gradient(GradientStep(torch.nn.Identity())), ValueError, "try step=0.5"),
        (lambda: Proximal(ridge(), step=2.0), ValueError, r"\(0, 2\)"),
        (lambda: HalfQuadratic(ridge(), step=math.inf), ValueError, "step"),
        (lambda: ADMM(ridge(), step=True), ValueError, "step"),
    ],
)
def test_impossible_options_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


class Short(Blur):
    """A blur whose proximal map is given two steps of conjugate gradients."""

    def prox(self, z, y, step, solver=None, on_failure="warn"):
        return super().prox(z, y, step, ti.CG(rtol=1e-5, max_steps=2), on_failure)


@pytest.mark.parametrize("kind", [HalfQuadratic, ADMM, DouglasRachford])
def test_a_data_step_that_was_not_solved_is_in_the_report_and_nowhere_else(kind):
    op = Short(torch.full((3, 3), 1 / 9, dtype=torch.float64))
    y = op.A(images(n=8))
    y[1] = 0  # which takes no steps
    few = ti.Anderson(rtol=1e-1, max_steps=40)
    cell = kind(ridge(), eps=1e-2).double()
    layer = Reconstruction(cell, few, on_failure="ignore", products=0)
    layer(y, op)  # a warning would be an error
    assert layer.report.status.tolist() == [ti.Status.MAX_STEPS, ti.Status.CONVERGED]
    assert "data step's own solve, by the operator's prox, did not converge for samples [0]" in layer.report.advice
    layer.on_failure = "raise"
    with pytest.raises(ti.ConvergenceError, match=r"a step of 10 .* the cell Preconditioned"):
        layer(y, op)
    assert Reconstruction(cell, few, products=0)(y[1:], op).shape == (1, 1, 8, 8)


class Duck(torch.nn.Module):
    """An operator of another library, whose proximal map says nothing of itself."""

    def A(self, x):
        return 0.5 * x

    def A_adjoint(self, y):
        return 0.5 * y

    def prox(self, z, y, gamma):
        return (z + gamma * 0.5 * y) / (1 + gamma * 0.25)


def test_operators_of_others_need_no_word_for_failures():
    y = images(n=8)
    with torch.no_grad():
        layer = Reconstruction(HalfQuadratic(ridge(), eps=1e-2).double(), on_failure="raise")
        assert layer(y, Duck()).shape == y.shape


def test_some_of_the_samples_have_the_norms_of_their_own_operators():
    kernels = torch.stack([scale * torch.ones(1, 3, 3, dtype=torch.float64) for scale in (0.1, 0.3, 0.2)])
    op, x = Blur(kernels), torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    begun = Gradient(Ridge(filters=2, taps=3).double()).begin(x, (x, op), 1)
    for rows in (torch.tensor([2]), torch.tensor([False, True, True])):
        torch.testing.assert_close(begun.take(rows).square(op.take(rows), x[rows]), begun.square(op, x)[rows])


def test_a_weight_of_the_prior_shortens_the_step():
    op = blur()
    y = op.A(images())
    cell = Gradient(Ridge(filters=2, taps=3, saturation=0.3).double(), weight=200.0, eps=1.0).double()
    plain = solved(cell, y, op, ti.Picard(rtol=1e-8, max_steps=5000))
    assert plain.report.converged


def test_a_step_of_admm_takes_the_new_multiplier():
    op, cell = blur(), ADMM(mean(), step=2.0, eps=0.1).double()
    y, z = op.A(images()), (images(), 0.3 * images().flip(0))
    denoised = cell.prior(z[0] + z[1])
    u = z[1] + z[0] - denoised
    x, found = cell(z, y, op)
    torch.testing.assert_close(found, u)
    torch.testing.assert_close(x, cell.proximal(denoised - u, y, op))

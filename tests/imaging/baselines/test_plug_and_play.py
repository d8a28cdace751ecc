"""Plug and play: the fixed point of a linear denoiser is known; what does not converge says so."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.imaging import Blur, Inpainting, plug_and_play

KERNEL = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]], dtype=torch.float64)
TIGHT = ti.Anderson(window=6, rtol=1e-11, max_steps=500)
INNER = ti.CG(rtol=1e-11, max_steps=200)


class Smooth(nn.Module):
    """Averages with neighbours around the edges, a symmetric matrix with eigenvalues in (0, 1]."""

    def __init__(self, amount=0.2):
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount, dtype=torch.float64))

    def forward(self, x):
        around = sum(x.roll(shift, axis) for shift in (1, -1) for axis in (-2, -1)) / 4
        return x + self.amount * (around - x)


class Foreign:
    """A blur of somebody else's, without a proximal map."""

    def __init__(self):
        self.blur = Blur(KERNEL)

    def A(self, x):
        return self.blur.A(x)

    def A_adjoint(self, y):
        return self.blur.A_adjoint(y)


def matrix(linear, size=30):
    return linear(torch.eye(size, dtype=torch.float64).view(-1, 1, 6, 5)).flatten(1).T


def measured(op, seed=0):
    return op.A(torch.randn(2, 1, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("splitting", ["hqs", "gradient"])
@pytest.mark.parametrize("make", [lambda: Blur(KERNEL), Foreign], ids=["ours", "foreign"])
def test_the_fixed_point_of_a_linear_denoiser(splitting, make):
    op, denoiser, step = make(), Smooth(), 0.7
    y = measured(op)
    found = plug_and_play(y, op, denoiser, step=step, splitting=splitting, solver=TIGHT, inner=INNER)
    with torch.no_grad():
        A, D, eye = matrix(op.A), matrix(denoiser), torch.eye(30, dtype=torch.float64)
        gram, b = A.T @ A, y.flatten(1) @ A
    if splitting == "hqs":
        inner = torch.linalg.inv(eye + step * gram)
        expected = torch.linalg.solve(eye - D @ inner, D @ inner @ (step * b.T))
    else:
        expected = torch.linalg.solve(eye - D @ (eye - step * gram), D @ (step * b.T))
    assert found.report.converged
    assert torch.allclose(found.value.flatten(1), expected.T, atol=1e-8)


def test_it_is_differentiated_by_the_denoiser_and_the_step():
    op, denoiser = Blur(KERNEL), Smooth()
    y, step = measured(op), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    adjoint = ti.Implicit(ti.GMRES(rtol=1e-10, max_steps=300))

    def loss(step):
        found = plug_and_play(y, op, denoiser, step=step, solver=TIGHT, adjoint=adjoint, inner=INNER)
        return found.value.square().sum()

    by_step, by_amount = torch.autograd.grad(loss(step), (step, denoiser.amount))
    with torch.no_grad():
        assert float(by_step) == pytest.approx(float(loss(step + 1e-4) - loss(step - 1e-4)) / 2e-4, rel=1e-3)
        denoiser.amount += 1e-4
        more = loss(step)
        denoiser.amount -= 2e-4
        assert float(by_amount) == pytest.approx(float(more - loss(step)) / 2e-4, rel=1e-3)


def test_more_steps_change_nothing_once_converged():
    op, truth = Blur(KERNEL), torch.zeros(1, 1, 6, 5, dtype=torch.float64)
    truth[..., 2:4, 1:4] = 1
    y, quality = op.A(truth), []
    for steps in (10, 50, 100, 200, 500):
        solver = ti.Anderson(rtol=1e-6, max_steps=steps)
        found = plug_and_play(y, op, Smooth(0.05), solver=solver, on_failure="ignore")
        quality.append((found.report.converged, -10 * float((found.value.detach() - truth).square().mean().log10())))
    done = [psnr for converged, psnr in quality if converged]
    assert len(done) >= 4
    assert max(done) - min(done) < 0.05


def test_a_denoiser_that_expands_says_so():
    op = Inpainting(torch.tensor([[[True, False, False, True]]]))
    y = op.A(torch.ones(1, 1, 1, 4))
    with pytest.warns(ti.ConvergenceWarning):
        found = plug_and_play(y, op, lambda x: 3 * x + 1, solver=ti.Picard(max_steps=50))
    assert not found.report.converged


def test_every_option_changes_the_answer():
    op = Blur(KERNEL)
    y, denoiser = measured(op), Smooth()
    usual = plug_and_play(y, op, denoiser)
    for options in ({"step": 0.1}, {"splitting": "gradient"}):
        assert not torch.allclose(plug_and_play(y, op, denoiser, **options).value, usual.value, atol=1e-3)
    with pytest.warns(ti.ConvergenceWarning):
        plug_and_play(y, op, denoiser, inner=ti.CG(rtol=1e-12, max_steps=1))
    assert plug_and_play(y, op, denoiser, start=usual.value).steps.max() < usual.steps.max()


def test_bad_input():
    op = Blur(KERNEL)
    y = measured(op)
    with pytest.raises(ValueError, match="expected 'hqs' or 'gradient'"):
        plug_and_play(y, op, Smooth(), splitting="admm")
    with pytest.raises(TypeError, match="expected a callable"):
        plug_and_play(y, op, 0.1)
    with pytest.raises(ValueError, match=r"plug_and_play\(step=-1\): expected a finite number > 0"):
        plug_and_play(y, op, Smooth(), step=-1)
    with pytest.raises(ValueError, match=r"start=.*as A\^H y"):
        plug_and_play(y, op, Smooth(), start=y[:1])


@pytest.mark.parametrize("ours", [True, False])
def test_a_data_step_that_was_not_solved_is_in_the_status(ours):
    blur = Blur(KERNEL)
    y = blur.A(torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    y[1] = 0
    op = blur if ours else SimpleNamespace(A=blur.A, A_adjoint=blur.A_adjoint)
    options = {"step": 30.0, "inner": ti.CG(rtol=1e-6, max_steps=2), "solver": ti.Anderson(rtol=0.1, max_steps=50)}
    found = plug_and_play(y, op, lambda x: x / 2, on_failure="ignore", **options)
    assert found.status.tolist() == [ti.Status.MAX_STEPS, ti.Status.CONVERGED]
    with pytest.raises(ti.ConvergenceError, match=r"was not found for samples \[0\]: try inner=CG"):
        plug_and_play(y, op, lambda x: x / 2, on_failure="raise", **options)

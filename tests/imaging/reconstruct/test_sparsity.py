"""Differences and wavelets as a regulariser: a gradient, monotone, no steeper than it says, and what it starts at."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchimplicit as ti
from torchimplicit.imaging import Blur, Gradient, Reconstruction, Sparsity


def prior(differences=0.3, wavelets=0.5, width=0.4, **options):
    return Sparsity(differences, wavelets, width, **{"moments": 2, "levels": 2} | options).double()


def draw(shape, seed, dtype=torch.float64, size=1.0):
    return size * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(2, 7, 8), (2, 3, 7, 8)])
def test_the_slope_is_the_gradient_of_the_energy(dtype, shape):
    sparsity, x = prior(), draw(shape, 0, dtype).requires_grad_()
    energy = sparsity.energy(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    assert energy.shape == (2,)
    torch.testing.assert_close(sparsity.slope(x), gradient, rtol=1e-5, atol=1e-10)
    assert torch.autograd.gradcheck(sparsity.slope, (x[:1, ..., :4, :4],))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([torch.float64, torch.complex128]), st.floats(0.01, 10))
def test_the_slope_is_monotone_and_the_denoiser_firmly_nonexpansive(seed, dtype, size):
    sparsity = prior(differences=size)
    with torch.no_grad():  # whatever it learns
        for parameter in sparsity.parameters():
            parameter += draw(parameter.shape, seed)
    a, b = draw((1, 8, 8), seed, dtype, size), draw((1, 8, 8), seed + 1, dtype)

    def inner(u, v):
        return (u.conj() * v).real.sum().item()

    steep, gap = sparsity.slope(a) - sparsity.slope(b), a - b
    assert inner(steep, gap) >= inner(steep, steep) / sparsity.lipschitz().item() - 1e-9
    moved = sparsity(a) - sparsity(b)
    assert inner(moved, moved) <= inner(moved, gap) + 1e-9
    assert sparsity.convex
    assert sparsity.is_firm()
    assert sparsity.expansion() == 1


def test_the_lipschitz_constant_bounds_the_curvature_and_not_by_much():
    sparsity = prior()
    jacobian = torch.autograd.functional.jacobian(sparsity.slope, torch.zeros(1, 16, 16, dtype=torch.float64))
    largest = torch.linalg.matrix_norm(jacobian.reshape(256, 256), 2)
    assert 0.75 * sparsity.lipschitz() < largest <= sparsity.lipschitz()


def test_it_starts_at_total_variation_and_wavelets():
    """With penalties that are sharp, by the numbers of both, of an image that each of them measures alone."""
    x = torch.zeros(1, 16, 16, dtype=torch.float64)
    x[:, 4:12, :] = 1  # two jumps of one in each of 16 columns
    sharp = prior(0.2, 1e-12, 1e-4)
    assert sharp.energy(x).item() == pytest.approx(0.2 * 32, rel=1e-2)
    haar = prior(1e-12, 0.3, 1e-4, moments=1, levels=1)
    # Half of the details of Haar's transform of a jump: 1/2 at each jump, counted half at the first level.
    assert haar.energy(x).item() == pytest.approx(0.3 * 0.5 * 32 * 0.5, rel=1e-2)


def test_the_phase_of_a_complex_image_passes_through_and_what_is_constant_stays():
    sparsity, x = prior(), draw((2, 9, 9), 0, torch.complex128)
    turn = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    torch.testing.assert_close(sparsity.slope(turn * x), turn * sparsity.slope(x))
    assert sparsity.slope(torch.full((1, 8, 8), 3.0, dtype=torch.float64)).abs().max() < 1e-12


def test_an_equilibrium_of_it_is_certified_and_differentiated():
    op, x = Blur(torch.full((3, 3), 1 / 9).double(), "circular"), draw((1, 1, 6, 6), 0)
    solver = ti.Anderson(window=5, rtol=1e-11, max_steps=500)
    layer = Reconstruction(Gradient(prior(levels=1), eps=0.1), solver).double()
    layer.adjoint = ti.Implicit(ti.CG(rtol=1e-11))
    y = op.A(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: layer(y, op), (y,), atol=1e-6, fast_mode=True)
    parameters = tuple(layer.parameters())
    gradients = torch.autograd.grad(layer(y, op).square().sum(), parameters)
    step = 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[1] += sign * step
                losses.append(layer(y, op).square().sum().item())
                parameter[1] -= sign * step
        assert gradient[1].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"differences": 0.0}, "differences=0.0"),
        ({"wavelets": -1}, "wavelets=-1"),
        ({"width": float("inf")}, "width=inf"),
        ({"moments": 11}, "moments=11"),
        ({"levels": 0}, "levels=0"),
    ],
)
def test_impossible_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Sparsity(**options)


@pytest.mark.parametrize("shape", [(8, 8), (8,)])
def test_images_that_are_none_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, \.\.\., H, W\)"):
        prior().slope(torch.zeros(shape, dtype=torch.float64))

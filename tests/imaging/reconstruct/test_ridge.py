"""The convex regulariser: a gradient, monotone, and no steeper than it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit.imaging import Ridge


def prior(**options):
    return Ridge(**{"filters": 4, "taps": 3, "saturation": 0.5} | options).double()


def draw(shape, seed, dtype=torch.float64, size=1.0):
    return size * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(2, 7, 8), (2, 3, 7, 8)])
def test_the_slope_is_the_gradient_of_the_energy(dtype, shape):
    ridge, x = prior(), draw(shape, 0, dtype).requires_grad_()
    energy = ridge.energy(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    assert energy.shape == (2,)
    torch.testing.assert_close(ridge.slope(x), gradient, rtol=1e-5, atol=1e-10)
    assert torch.autograd.gradcheck(ridge.slope, (x,))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([torch.float64, torch.complex128]), st.floats(0.01, 10))
def test_the_slope_is_monotone_and_the_denoiser_firmly_nonexpansive(seed, dtype, size):
    ridge = prior(seed=seed, curvature=size)
    a, b = draw((1, 8, 8), seed, dtype, size), draw((1, 8, 8), seed + 1, dtype)

    def inner(u, v):
        return (u.conj() * v).real.sum().item()

    steep, gap = ridge.slope(a) - ridge.slope(b), a - b
    assert inner(steep, gap) >= inner(steep, steep) / ridge.lipschitz().item() - 1e-9
    moved = ridge(a) - ridge(b)
    assert inner(moved, moved) <= inner(moved, gap) + 1e-9
    assert ridge.convex
    assert ridge.is_firm()
    assert ridge.expansion() == 1


@pytest.mark.parametrize("taps", [3, 5, 7])
def test_the_lipschitz_constant_bounds_the_curvature_and_not_by_much(taps):
    ridge = prior(taps=taps)
    jacobian = torch.autograd.functional.jacobian(ridge.slope, torch.zeros(1, 20, 20, dtype=torch.float64))
    largest = torch.linalg.matrix_norm(jacobian.reshape(400, 400), 2)
    assert 0.75 * ridge.lipschitz() < largest <= ridge.lipschitz()


def test_the_lipschitz_constant_is_that_of_the_frequencies():
    ridge = prior(taps=5)
    response = torch.fft.fft2(ridge.kernel(), s=(1000, 1000)).abs().square().sum((0, 1)).amax()
    assert response <= ridge.lipschitz() <= 1.09 * response


def test_the_phase_of_a_complex_image_passes_through():
    ridge, x = prior(), draw((2, 9, 9), 0, torch.complex128)
    turn = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    torch.testing.assert_close(ridge.slope(turn * x), turn * ridge.slope(x))
    torch.testing.assert_close(
        ridge.slope(torch.complex(x.real, 0 * x.real)).real, ridge.slope(x.real), rtol=1e-5, atol=0
    )


def test_what_is_constant_is_left_alone():
    ridge = prior()
    flat = torch.full((1, 9, 9), 3.0, dtype=torch.float64)
    torch.testing.assert_close(ridge(flat)[:, 2:-2, 2:-2], flat[:, 2:-2, 2:-2])
    assert bool((ridge(flat)[:, 0] < flat[:, 0]).all())  # beyond the border it counts as zero


def test_total_variation_is_where_it_starts():
    strength, x = 0.2, torch.zeros(1, 16, 16, dtype=torch.float64)
    x[:, 4:12, 4:12] = 1  # 32 jumps of one, within the image
    ridge = Ridge.total_variation(strength, width=1e-3, taps=3).double()
    assert ridge.energy(x).item() == pytest.approx(strength * 32, rel=0.05)
    assert torch.count_nonzero(ridge.weight[0]) == torch.count_nonzero(ridge.weight[1]) == 2


def test_total_variation_is_smoothed_over_the_width():
    ramp = 1e-3 * torch.arange(16, dtype=torch.float64).expand(1, 16, 16)
    ramp = torch.nn.functional.pad(torch.cat((ramp, ramp.flip(2)), 2), (0, 0, 1, 1))  # up to 15e-3 and down to zero
    sharp, smooth = (Ridge.total_variation(0.2, width=w, taps=3).double().energy(ramp).item() for w in (1e-5, 1.0))
    assert sharp == pytest.approx(0.2 * 1e-3 * (16 * 30 + 2 * 240), rel=0.05)  # along, and across at both ends
    assert smooth < 0.01 * sharp


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"filters": 0}, "filters=0"),
        ({"taps": 4}, "odd"),
        ({"taps": 1}, "odd"),
        ({"curvature": 0.0}, "curvature"),
        ({"saturation": float("inf")}, "saturation"),
    ],
)
def test_impossible_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Ridge(**options)


@pytest.mark.parametrize(
    "options", [{"strength": 0.0}, {"strength": 1.0, "width": -1}, {"strength": 1.0, "filters": 1}]
)
def test_impossible_total_variations_are_refused(options):
    with pytest.raises(ValueError, match="total_variation"):
        Ridge.total_variation(**options)


@pytest.mark.parametrize("shape", [(8, 8), (8,)])
def test_images_that_are_none_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, \.\.\., H, W\)"):
        prior().slope(torch.zeros(shape, dtype=torch.float64))

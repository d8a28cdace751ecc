"""Metrics against scikit-image, by their definitions, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import metrics as reference

from torchimplicit import imaging

GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def pair(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(*shape, dtype=dtype, generator=generator)
    return truth + 0.1 * torch.randn(*shape, dtype=dtype, generator=generator), truth


@pytest.mark.parametrize(("window", "settings"), [("gaussian", GAUSSIAN), ("uniform", {})])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (-1000.0, 255.0), (0.0, 1e-3)])
def test_ssim_is_that_of_scikit_image(window, settings, offset, scale):
    x, truth = (offset + scale * each for each in pair(3, 2, 16, 19))
    got = imaging.ssim(x, truth, data_range=2.0 * scale, window=window)
    for sample in range(3):
        a, b = x[sample].numpy(), truth[sample].numpy()
        expected = reference.structural_similarity(b, a, data_range=2.0 * scale, channel_axis=0, **settings)
        # scikit-image subtracts squares of 1000 from each other: it is the one that loses the digits.
        assert abs(got[sample].item() - expected) < (1e-10 if not offset else 1e-7)


def test_the_two_windows_and_two_ranges_give_different_figures():
    x, truth = pair(1, 1, 24, 24)
    first = imaging.ssim(x, truth, data_range=1.0)
    assert abs(first - imaging.ssim(x, truth, data_range=10.0)) > 1e-2
    assert abs(first - imaging.ssim(x, truth, data_range=1.0, window="uniform")) > 1e-3


def test_psnr_and_nrmse_are_those_of_scikit_image():
    x, truth = pair(3, 2, 5, 7)
    ranges = torch.tensor([0.5, 1.0, 2.0])
    ratio, error = imaging.psnr(x, truth, data_range=ranges), imaging.nrmse(x, truth)
    for sample, data_range in enumerate(ranges.tolist()):
        a, b = x[sample].numpy(), truth[sample].numpy()
        assert abs(ratio[sample].item() - reference.peak_signal_noise_ratio(b, a, data_range=data_range)) < 1e-10
        assert abs(error[sample].item() - reference.normalized_root_mse(b, a)) < 1e-12


def test_ssim_keeps_its_digits_in_float32_at_an_offset():
    """Images of CT lie at -1000: squares of that leave no digits for a variance of 1."""
    x, truth = pair(2, 1, 20, 20)
    x, truth = ((4 * each).float() - 1000 for each in (x, truth))
    exact = imaging.ssim(x.double(), truth.double(), data_range=4.0)
    torch.testing.assert_close(imaging.ssim(x, truth, data_range=4.0).double(), exact, atol=1e-5, rtol=0)


def test_complex_images_are_compared_by_what_is_named():
    x, truth = pair(2, 16, 16, dtype=torch.complex128)
    turned = truth * np.exp(0.5j)
    assert imaging.nrmse(turned, truth, by="magnitude").max() < 1e-14
    expected = torch.full((2,), abs(1 - np.exp(0.5j)), dtype=torch.float64)
    torch.testing.assert_close(imaging.nrmse(turned, truth, by="difference"), expected)
    error = (x - truth).abs().square().mean((1, 2))
    torch.testing.assert_close(imaging.psnr(x, truth, data_range=1.0, by="difference"), -10 * error.log10())
    torch.testing.assert_close(imaging.ssim(turned, truth, data_range=1.0, by="magnitude"), torch.ones(2).double())
    assert imaging.psnr(x, truth, data_range=1.0, by="magnitude").dtype == torch.float64


@pytest.mark.parametrize("name", ["psnr", "ssim", "nrmse"])
def test_gradients_are_right_and_finite_where_the_images_agree(name):
    options = {} if name == "nrmse" else {"data_range": 1.3}
    metric = getattr(imaging, name)
    x, truth = pair(2, 1, 12, 13)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: metric(x, t, **options), (x, truth))
    same = torch.cat((truth[:1], x.detach()[1:])).requires_grad_()
    value = metric(same, truth, **options)
    (gradient,) = torch.autograd.grad(value[1] + value[0], same)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() < 1e-12
    assert gradient[1].abs().max() > 0


@given(st.sampled_from(["psnr", "ssim", "nrmse"]), st.integers(0, 100), st.floats(-3, 3), st.integers(0, 2))
def test_scaling_everything_changes_nothing(name, seed, decades, border):
    x, truth = pair(2, 1, 16, 16, seed=seed)
    scale = 10**decades
    options = [{} if name == "nrmse" else {"data_range": value} for value in (1.0, scale)]
    metric = getattr(imaging, name)
    plain = metric(x, truth, border=border, **options[0])
    torch.testing.assert_close(metric(scale * x, scale * truth, border=border, **options[1]), plain, rtol=1e-9, atol=0)
    cut = slice(border, 16 - border)
    torch.testing.assert_close(metric(x[..., cut, cut], truth[..., cut, cut], **options[0]), plain)


def test_a_broken_sample_breaks_no_other():
    x, truth = pair(3, 1, 16, 16)
    broken = x.clone()
    broken[1, 0, 3, 3] = math.nan
    for metric in (imaging.psnr, imaging.ssim):
        whole, part = metric(x, truth, data_range=1.0), metric(broken, truth, data_range=1.0)
        assert part.isnan().tolist() == [False, True, False]
        assert torch.equal(part[[0, 2]], whole[[0, 2]])
    assert imaging.psnr(truth, truth, data_range=1.0).tolist() == [math.inf] * 3


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"x": torch.zeros(2, 16, 16, dtype=torch.uint8)}, TypeError, r"got torch.uint8, .* try .to\(torch.float32\)"),
        ({"x": [1.0]}, TypeError, "got list, expected a tensor"),
        ({"x": torch.zeros(2, 16, 15)}, ValueError, r"x \(2, 16, 15\) and truth \(2, 16, 16\), .* try x\[None\]"),
        ({"x": torch.zeros(2, 16, 16, dtype=torch.complex64)}, ValueError, "expected by='magnitude' .* or by='diff"),
        ({"by": "phase"}, ValueError, "by='phase'.*expected 'magnitude' or 'difference'"),
        ({"border": 8}, ValueError, r"border=8\): expected pixels >= 0 that leave some of \(2, 16, 16\)"),
        ({"border": -1}, ValueError, r"border=-1\): expected pixels >= 0"),
        ({"data_range": 0.0}, ValueError, r"data_range=0.0\): expected finite numbers > 0; try truth.abs"),
        ({"data_range": torch.ones(3)}, ValueError, r"got \(3,\), expected a number > 0, or one a sample, \(2,\)"),
        ({"data_range": None}, ValueError, "got None, expected a number"),
    ],
)
@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_refuses(name, change, error, said):
    given = {"x": torch.zeros(2, 16, 16), "truth": torch.ones(2, 16, 16), "data_range": 1.0} | change
    with pytest.raises(error, match=said):
        getattr(imaging, name)(given.pop("x"), given.pop("truth"), **given)


def test_ssim_refuses_what_it_alone_cannot():
    x = torch.zeros(2, 10, 30)
    with pytest.raises(ValueError, match="10 x 30 pixels, expected at least 11 each way"):
        imaging.ssim(x, x, data_range=1.0)
    with pytest.raises(ValueError, match=r"expected 'gaussian' .* or 'uniform'"):
        imaging.ssim(x, x, data_range=1.0, window="box")
    with pytest.raises(ValueError, match="try by='magnitude'"):
        imaging.ssim(x, x, data_range=1.0, by="difference")
    with pytest.raises(ValueError, match=r"expected \(B, ..., H, W\)"):
        imaging.ssim(x[0], x[0], data_range=1.0)
    with pytest.raises(TypeError, match="data_range"):
        imaging.psnr(x, x)

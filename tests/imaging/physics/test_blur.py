"""Blurs: which way round a kernel is, what lies beyond a border, kernels."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.physics.dense import normal
from torchimplicit.imaging import Blur, gaussian_kernel

im, D = ti.imaging, torch.float64


@pytest.mark.parametrize("border", ["valid", "circular", "reflect"])
def test_a_constant_stays_one_at_the_border(border):
    for kernel in (im.gaussian_kernel(5, 1.2), im.motion_kernel(5, 3.3, 20.0), im.gaussian_kernel(1, 2.0)):
        image = im.Blur(kernel.double(), border).A(torch.full((2, 3, 6, 8), 2.5, dtype=D))
        assert torch.allclose(image, torch.full_like(image, 2.5), rtol=1e-6)
        size = len(kernel) - 1
        assert image.shape == ((2, 3, 6 - size, 8 - size) if border == "valid" else (2, 3, 6, 8))


@pytest.mark.parametrize("border", ["valid", "circular", "reflect"])
def test_a_point_becomes_the_kernel(border):
    point, kernel = torch.zeros(1, 1, 9, 9, dtype=D), torch.arange(15.0, dtype=D).view(3, 5)
    point[..., 4, 4] = 1
    image = im.Blur(kernel, border).A(point)[0, 0]
    height, width = image.shape
    top, left = (height - 3) // 2, (width - 5) // 2
    assert torch.allclose(image[top : top + 3, left : left + 5], kernel, atol=1e-13)
    assert abs(float(image.sum() - kernel.sum())) < 1e-11


def test_borders_agree_inside_and_differ_at_the_edge():
    x, kernel = normal(1, 2, 9, 8), normal(3, 5, seed=1)
    valid, circular, reflect = (im.Blur(kernel, border).A(x) for border in ("valid", "circular", "reflect"))
    assert torch.allclose(circular[..., 1:-1, 2:-2], valid, atol=1e-13)
    assert torch.allclose(reflect[..., 1:-1, 2:-2], valid, atol=1e-13)
    assert (circular - reflect)[..., 0, :].abs().max() > 0.1
    padded = torch.nn.functional.pad(x, (2, 2, 1, 1), mode="reflect")
    assert torch.allclose(reflect, im.Blur(kernel).A(padded), atol=1e-13)
    padded = torch.nn.functional.pad(x, (2, 2, 1, 1), mode="circular")
    assert torch.allclose(circular, im.Blur(kernel).A(padded), atol=1e-13)


def test_kernels():
    kernel = im.gaussian_kernel(7, 1.5)
    assert torch.allclose(kernel.sum(), torch.tensor(1.0))
    assert torch.allclose(kernel[3, 4] / kernel[3, 3], torch.tensor(-1 / (2 * 1.5**2)).exp())
    assert torch.allclose(kernel, kernel.T)
    level, upright = im.motion_kernel(7, 4.0), im.motion_kernel(7, 4.0, 90.0)
    assert torch.allclose(level[3], torch.tensor([0, 0.125, 0.25, 0.25, 0.25, 0.125, 0]), atol=1e-6)
    assert torch.allclose(upright, level.T, atol=1e-6)
    rising = im.motion_kernel(7, 4.0, 45.0)
    assert rising[2, 4] > 0.1 > rising[4, 4], "angles go upwards"
    assert torch.allclose(rising, rising.flip(0, 1))
    still = torch.zeros(3, 3)
    still[1, 1] = 1
    assert torch.equal(im.motion_kernel(3, 0.0, 30.0), still)


SMALL = torch.zeros(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: im.Blur(torch.ones(2, 3)), ValueError, r"got shape \(2, 3\), expected \(h, w\) of odd sizes"),
        (lambda: im.Blur(torch.ones(3, 3).long()), TypeError, r"Blur\(kernel=...\): got a tensor of torch.int64"),
        (lambda: im.Blur(torch.full((3, 3), torch.nan)), ValueError, r"got 9 entries that are NaN or infinite"),
        (lambda: im.Blur(torch.zeros(3, 3)), ValueError, "got zeros alone"),
        (lambda: im.Blur(torch.ones(3, 3), "zeros"), ValueError, "expected 'valid', 'circular' or 'reflect'"),
        (lambda: im.Blur(torch.ones(3, 3)).A(torch.zeros(4, 4)), ValueError, r"got images \(4, 4\), expected \(B"),
        (lambda: im.Blur(torch.ones(3, 3)).A(SMALL), ValueError, r"of \(3, 3\) pixels or more for a kernel \(3, 3\)"),
        (lambda: im.Blur(torch.ones(5, 5), "reflect").A(SMALL), ValueError, r"of \(3, 3\) pixels or more"),
        (lambda: im.Blur(torch.ones(2, 3, 3)).A(torch.ones(1, 3, 9, 9)), ValueError, r"expected \(B, 2, H, W\)"),
        (lambda: im.Blur(torch.ones(3, 3)).A(torch.ones(1, 1, 4, 4).int()), TypeError, r"try x.float\(\)"),
        (lambda: im.gaussian_kernel(4, 1.0), ValueError, r"gaussian_kernel\(size=4\): expected an odd number"),
        (lambda: im.gaussian_kernel(3, 0.0), ValueError, r"gaussian_kernel\(sigma=0.0\): expected a number > 0"),
        (lambda: im.motion_kernel(5, 4.5), ValueError, r"motion_kernel\(length=4.5\): expected a number in \[0, 4\]"),
        (lambda: im.motion_kernel(5, 2.0, float("inf")), ValueError, r"motion_kernel\(angle=inf\)"),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("border", ["valid", "circular", "reflect"])
def test_the_norms_bound_is_one(border):
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 5), (2, 3, 3), (4, 1, 3, 3)):
        op = Blur(torch.randn(shape, dtype=torch.float64, generator=generator), border)
        x = torch.randn(4, 2, 9, 8, dtype=torch.float64, generator=generator)
        norm, bound = op.norm(x, max_steps=200), op.norm_bound(x)
        assert (bound >= norm * (1 - 1e-6)).all()
        assert (bound < 4 * norm).all()


def test_the_spectrum_is_that_of_the_circular_gram_operator_and_bounds_the_valid_one():
    x = torch.randn(2, 1, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_kernel(3, torch.tensor(1.0, dtype=torch.float64))
    circular, valid = Blur(kernel, "circular"), Blur(kernel)
    filtered = torch.fft.ifft2(circular.spectrum(x) * torch.fft.fft2(x)).real
    torch.testing.assert_close(filtered, circular.gram(x))
    assert torch.equal(valid.spectrum(x), circular.spectrum(x))
    energies = [(x * each).flatten(1).sum(1) for each in (valid.gram(x), filtered)]
    assert (energies[0] <= energies[1]).all()


@pytest.mark.parametrize("border", ["valid", "circular", "reflect"])
def test_a_blurred_image_is_a_first_guess_of_the_sharp_one(border):
    op, x = Blur(torch.full((3, 5), 1 / 15), border), torch.rand(2, 1, 9, 8)
    y = op.A(x)
    guess = op.guess(y)
    assert guess.shape == x.shape
    if border == "valid":
        assert torch.equal(guess[..., 1:-1, 2:-2], y)
        assert torch.equal(guess[..., 0, 0], y[..., 0, 0])
    else:
        assert guess is y


def test_an_operator_of_ones_own_guesses_nothing_and_its_bound_is_its_norm():
    op = ti.imaging.Inpainting(torch.arange(6) % 2 > 0)
    x = torch.ones(2, 6)
    assert op.guess(op.A(x)) is None
    assert op.spectrum(x) is None
    assert torch.equal(op.norm_bound(x), op.norm(x))


def test_the_norms_bound_is_every_samples_own():
    kernels = torch.stack([scale * torch.ones(1, 3, 3, dtype=torch.float64) for scale in (0.1, 0.5, 0.2)])
    bound = Blur(kernels).norm_bound(torch.zeros(3, 1, 8, 8, dtype=torch.float64))
    torch.testing.assert_close(bound, torch.tensor([0.9, 4.5, 1.8], dtype=torch.float64))

"""Noise: its law, its seeds, batch mates, gradients, bad input."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.physics.dense import normal

im = ti.imaging


def test_normal_noise_has_its_law():
    y = torch.zeros(2, 100, 101, dtype=torch.float64)
    n = im.GaussianNoise(0.5)(y, seed=1)
    assert abs(float(n.mean())) < 4 * 0.5 / 20200**0.5
    assert abs(float(n.square().mean()) - 0.25) < 4 * 0.25 * (2 / 20200) ** 0.5
    assert abs(float((n[0] * n[1]).mean())) < 4 * 0.25 / 10100**0.5
    assert abs(float((n[:, 1:] * n[:, :-1]).mean())) < 4 * 0.25 / 20000**0.5
    k = im.GaussianNoise(0.5)(y.to(torch.complex128), seed=1)
    for part in (k.real, k.imag):
        assert abs(float(part.square().mean()) - 0.125) < 4 * 0.125 * (2 / 20200) ** 0.5
    assert abs(float((k.real * k.imag).mean())) < 4 * 0.125 / 20200**0.5


def test_counted_photons_have_their_law():
    y = torch.full((1, 20000), 0.3, dtype=torch.float64)
    noisy = im.PoissonNoise(photons=10)(y, seed=1)
    assert torch.allclose(noisy * 10, (noisy * 10).round())
    assert abs(float(noisy.mean()) - 0.3) < 4 * (0.03 / 20000) ** 0.5
    assert abs(float(noisy.var()) - 0.03) < 0.002
    assert torch.equal(im.PoissonNoise(photons=10)(torch.zeros(2, 3), seed=0), torch.zeros(2, 3))


@pytest.mark.parametrize("noise", [im.GaussianNoise(1.0), im.PoissonNoise(photons=5.0)], ids=["gaussian", "poisson"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_seeds_and_mates(noise, dtype):
    if dtype.is_complex and isinstance(noise, im.PoissonNoise):
        pytest.skip("counts are real")
    y, seeds = torch.ones(4, 2, 5, dtype=dtype), torch.tensor([5, 9, 5, 2])
    state = torch.get_rng_state()
    noisy = noise(y, seeds)
    assert noisy.dtype == dtype
    assert torch.equal(noisy[0], noisy[2])
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noise(y[[3, 1]], seeds[[3, 1]]), noisy[[3, 1]])
    assert torch.equal(noise(y, 7)[:2], noise(y[:2], 7)), "one seed gives a sample its own by its number"
    assert not torch.equal(noise(y, 7)[0], noise(y, 7)[1])
    assert not torch.equal(noise(y, 7), noise(y, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert noise(y[:0], 7).shape == y[:0].shape


def test_noise_where_it_is_measured_and_its_gradients():
    op = im.Sense(normal(2, 4, 6, dtype=torch.complex128), im.cartesian(6, 2, 0.2))
    y = op.A(normal(3, 4, 6, dtype=torch.complex128)).requires_grad_()
    std = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    noisy = im.GaussianNoise(std)(y, 3, where=op.coil.mask)
    assert torch.equal(noisy == 0, (~op.coil.mask).expand_as(noisy))
    plain = im.GaussianNoise(1.0)(torch.zeros_like(y), 3, where=op.coil.mask)
    assert torch.allclose(noisy, y + std[:, None, None, None] * plain)
    assert torch.autograd.gradcheck(lambda y, s: im.GaussianNoise(s)(y, 3), (y, std), fast_mode=True)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: im.GaussianNoise(-1.0), ValueError, r"GaussianNoise\(std=-1.0\): expected a number >= 0"),
        (lambda: im.GaussianNoise(0.1)(torch.ones(2, 3).long(), 0), TypeError, r"measurements that are .*torch.int64"),
        (lambda: im.GaussianNoise(0.1)(torch.ones(2, 3), torch.arange(3)), ValueError, r"got 3 seeds for a batch of 2"),
        (lambda: im.PoissonNoise(photons=0), ValueError, r"PoissonNoise\(photons=0\): expected a number > 0"),
        (lambda: im.PoissonNoise(photons=9)(-torch.ones(2, 3), 0), ValueError, r"down to -1, expected none below 0"),
        (lambda: im.PoissonNoise(photons=9)(torch.full((2, 3), torch.nan), 0), ValueError, "no NaN"),
        (lambda: im.PoissonNoise(photons=9)(torch.ones(2, 3) * 1j, 0), TypeError, "expected real ones"),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()

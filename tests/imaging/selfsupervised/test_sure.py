"""Stein's estimate: equal to the risk in expectation, exact divergences, through an equilibrium, complex and masked."""

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.imaging import Fourier, Inpainting, Sense, sure_loss

DRAWS = 4000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def identity(size):
    return Inpainting(torch.ones(size, dtype=torch.bool))


class Linear(nn.Module):
    def __init__(self, size, seed=0, dtype=torch.float64):
        super().__init__()
        self.matrix = nn.Parameter(0.3 * torch.randn(size, size, dtype=dtype, generator=generator(seed)))

    def forward(self, y, op):
        return y @ self.matrix.mT


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_of_a_shrinkage_it_is_known_exactly(dtype):
    y, sigma = torch.randn(3, 50, dtype=dtype, generator=generator()), 0.4
    found = sure_loss(lambda y, op: 0.7 * y, y, identity(50), noise=sigma, seed=0)
    expected = 0.09 * y.abs().square().mean(1) - sigma**2 + 2 * sigma**2 * 0.7
    assert torch.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_its_mean_is_the_risk_of_a_linear_denoiser(dtype):
    size, sigma, denoise = 12, 0.5, Linear(12, dtype=dtype)
    x = torch.randn(1, size, dtype=dtype, generator=generator(1))
    y = x + sigma * torch.randn(DRAWS, size, dtype=dtype, generator=generator(2))
    with torch.no_grad():
        # Of a linear denoiser the risk is |W x - x|^2 + sigma^2 |W|^2.
        bias = (denoise(x, None) - x).abs().square().sum()
        risk = float(bias + sigma**2 * denoise.matrix.abs().square().sum()) / size
    estimates = sure_loss(denoise, y, identity(size), noise=sigma, seed=0).detach()
    error = float(estimates.std()) / DRAWS**0.5
    assert abs(float(estimates.mean()) - risk) < 4 * error < 0.1 * risk


def test_its_mean_is_the_risk_of_a_soft_threshold():
    size, sigma = 20, 0.5
    x = torch.randn(1, size, dtype=torch.float64, generator=generator(1)) * (torch.arange(size) % 3 == 0)
    y = x + sigma * torch.randn(DRAWS, size, dtype=torch.float64, generator=generator(2))

    def threshold(y, op):
        return y - y.clamp(-0.6, 0.6)

    estimates = sure_loss(threshold, y, identity(size), noise=sigma, seed=0).detach()
    true = (threshold(y, None) - x).square().mean(1)
    error = float((estimates - true).std()) / DRAWS**0.5
    assert abs(float((estimates - true).mean())) < 4 * error < 0.02


@pytest.mark.parametrize("coils", [True, False])
def test_only_what_is_sampled_counts(coils):
    mask = torch.tensor([True, False, True, True])[:, None]
    x = torch.randn(1, 4, 3, dtype=torch.complex128, generator=generator(1))
    maps = torch.randn(2, 4, 3, dtype=torch.complex128, generator=generator(3))
    op = Sense(maps / maps.abs().square().sum(0).sqrt(), mask) if coils else Fourier(mask)
    sigma, clean = 0.3, op.A(x)
    noise = torch.randn(DRAWS, *clean.shape[1:], dtype=clean.dtype, generator=generator(2))
    y = clean + sigma * (op.coil if coils else op).mask * noise

    def reconstruct(y, op):
        return 0.8 * op.A_adjoint(y)

    sampled = 9 * (2 if coils else 1)
    true = (op.A(reconstruct(y, op)) - clean).abs().square().flatten(1).sum(1) / sampled
    estimates = sure_loss(reconstruct, y, op, noise=sigma, seed=0).detach()
    error = float((estimates - true).std()) / DRAWS**0.5
    assert abs(float((estimates - true).mean())) < 4 * error < 0.1 * float(true.mean())


def test_gradients_by_parameters_are_those_of_the_risk():
    size, sigma, denoise = 4, 0.5, Linear(4)
    y = torch.randn(1, size, dtype=torch.float64, generator=generator(1))
    seeds = torch.arange(200)
    risk = sure_loss(denoise, y.expand(200, -1), identity(size), noise=sigma, seed=seeds).mean()
    (found,) = torch.autograd.grad(risk, denoise.matrix)
    with torch.no_grad():
        misfit = 2 * torch.outer((denoise(y, None) - y)[0], y[0]) / size
        expected = misfit + 2 * sigma**2 / size * torch.eye(size)
    assert (found - expected).abs().max() < 4 * 2 * sigma**2 / size / 200**0.5


def test_through_an_equilibrium():
    weight = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    adjoint = ti.Implicit(ti.GMRES(rtol=1e-10))

    def reconstruct(y, op):  # z = tanh(w z) / 2 + y / 2, entry by entry: its Jacobian is diagonal
        solver = ti.Anderson(rtol=1e-12, max_steps=100)
        return ti.fixed_point(
            lambda z, y, w: torch.tanh(w * z) / 2 + y / 2, 0 * y, y, weight, solver=solver, adjoint=adjoint
        ).value

    y = torch.randn(2, 6, dtype=torch.float64, generator=generator())
    found = sure_loss(reconstruct, y, identity(6), noise=0.5, seed=0)
    z = reconstruct(y, None)
    divergence = 0.5 / (1 - 0.5 * weight * (1 - torch.tanh(weight * z).square()))
    expected = (z - y).square().mean(1) - 0.25 + 0.5 * divergence.mean(1)
    assert torch.allclose(found, expected, rtol=1e-8)
    pair = [torch.autograd.grad(value.sum(), weight, retain_graph=True)[0] for value in (found, expected)]
    assert torch.allclose(*pair, rtol=1e-6)


def test_an_estimate_is_its_samples_own():
    y, denoise = torch.randn(3, 8, dtype=torch.float64, generator=generator()), Linear(8)
    seeds = torch.tensor([4, 7, 4])
    all_, one = (
        sure_loss(denoise, y[rows], identity(8), noise=0.3, seed=seeds[rows]) for rows in (slice(3), slice(1, 2))
    )
    assert torch.allclose(all_[1:2], one, rtol=1e-12)
    assert not torch.allclose(all_, sure_loss(denoise, y, identity(8), noise=0.3, seed=seeds + 1))


def test_without_gradients_it_is_a_number_alone():
    y = torch.randn(1, 8, generator=generator())
    with torch.no_grad():
        found = sure_loss(lambda y, op: 0.5 * y, y, identity(8), noise=0.3)
    assert not found.requires_grad
    assert not y.requires_grad


def test_bad_input():
    y = torch.ones(1, 4)
    for noise in (0.0, -1.0, "1", torch.ones(1)):
        with pytest.raises(ValueError, match="expected the standard deviation, a number > 0"):
            sure_loss(lambda y, op: y, y, identity(4), noise=noise)
    with pytest.raises(TypeError, match=r"try y.float"):
        sure_loss(lambda y, op: y, y.long(), identity(4), noise=1.0)
    with pytest.raises(ValueError, match="no gradient by its measurements"):
        sure_loss(lambda y, op: y.detach(), y, identity(4), noise=1.0)
    w = torch.ones(1, 4, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on the measurements"):
        sure_loss(lambda y, op: w * y.detach(), y, identity(4), noise=1.0)

"""Schedules against their equation, their inverse and each other."""

import pytest
import torch

import torchimplicit as ti
from tests.nn.score.gaussian import SCHEDULES, D


def times(schedule, count=30):
    first, last = schedule.span
    return torch.linspace(first + 1e-3 * (last - first), last, count, dtype=D).requires_grad_()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_drift_and_diffusion_make_the_path(schedule):
    """The mean and the variance of the linear equation: `alpha' = f alpha`, `(sigma^2)' = 2 f sigma^2 + g^2`."""
    t = times(schedule)
    f, g = schedule.drift(t).detach(), schedule.diffusion(t).detach()
    alpha, variance = schedule.alpha(t), schedule.sigma(t).square()
    (d_alpha,) = torch.autograd.grad(alpha.sum() + 0 * t.sum(), t)
    (d_variance,) = torch.autograd.grad(variance.sum(), t)
    assert torch.allclose(d_alpha, f * alpha, rtol=1e-10)
    assert torch.allclose(d_variance, 2 * f * variance + g**2, rtol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [(D, 1e-9), (torch.float32, 1e-4)])
def test_the_inverse(schedule, dtype, rtol):
    t = times(schedule).detach().to(dtype)
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    assert torch.allclose(schedule.time(log_snr), t, rtol=rtol)
    assert torch.allclose(schedule.level(t).log() * -2, log_snr, rtol=1e-5, atol=1e-6)
    least, most = schedule.levels
    ends = torch.tensor(schedule.span, dtype=D)
    assert schedule.level(ends).tolist() == [least, most]
    assert 0 < least < 0.02 < 40 < most


def test_the_published_paths():
    t = torch.tensor(0.3, dtype=D)
    total = 0.1 * 0.3 + 0.5 * 19.9 * 0.09
    assert ti.nn.VP().alpha(t).item() == pytest.approx(torch.tensor(-total / 2).exp().item(), rel=1e-6)
    assert ti.nn.VE().sigma(t).item() == pytest.approx(0.01 * 5000**0.3)
    assert ti.nn.Straight().alpha(t).item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ti.nn.EDM(sigma_min=0), r"EDM\(sigma_min=0\): expected a number above 0"),
        (lambda: ti.nn.VE(sigma_min=2, sigma_max=1), r"VE\(sigma_max=1\): expected a number above 2"),
        (lambda: ti.nn.VP(t_min=1.0), r"VP\(t_min=1.0\).*below 1"),
        (lambda: ti.nn.SubVP(beta_max=True), r"SubVP\(beta_max=True\)"),
        (lambda: ti.nn.Straight(t_max=1), r"Straight\(t_max=1\)"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ValueError, match=words):
        make()

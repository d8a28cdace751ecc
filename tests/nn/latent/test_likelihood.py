"""Likelihoods against closed forms; what is missing counts nothing, and padding changes no bit."""

import math

import pytest
import torch
from torch import nn

from tests.nn.latent.stays import D, stays
from torchimplicit.nn import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood, Series


def counts(values):
    return Series.of([(torch.arange(len(values), dtype=D), torch.tensor(values, dtype=D).unsqueeze(1))])


def test_normal_errors():
    series = stays([4, 2])
    output = torch.randn(5, 2, 4, 3, dtype=D, requires_grad=True)
    std = torch.tensor([0.5, 1.0, 2.0], dtype=D)
    likelihood = GaussianLikelihood(std)
    value = likelihood(output, series)
    error = (output - series.values) / std
    expected = torch.where(series.mask, -0.5 * error.square() - std.log() - 0.5 * math.log(2 * math.pi), 0.0)
    assert torch.allclose(value, expected.sum((2, 3)))
    assert torch.equal(likelihood.mean(output), output)
    (slope,) = torch.autograd.grad(value.sum(), output)
    assert bool((slope[:, ~series.mask] == 0).all())
    assert torch.allclose(likelihood.each(output, series), expected)


def test_learned_deviations_find_the_data_s():
    series = Series.of([(torch.arange(4.0), torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]))])
    likelihood = GaussianLikelihood(std=0.1, learned=True)
    assert isinstance(likelihood.log_std, nn.Parameter)
    assert not list(GaussianLikelihood(std=0.1).parameters())
    optimiser = torch.optim.Adam(likelihood.parameters(), lr=0.2)
    for _ in range(200):
        optimiser.zero_grad()
        (-likelihood(torch.zeros(1, 4, 1), series)).sum().backward()
        optimiser.step()
    assert float(likelihood.std.detach()) == pytest.approx(math.sqrt(2.5), rel=1e-2)


def test_counts_and_signs():
    output = torch.tensor([[[0.3], [-0.2], [0.7]]], dtype=D)
    poisson = PoissonLikelihood()
    value = poisson(output, counts([0.0, 3.0, 1.0]))
    expected = (0 * 0.3 - math.exp(0.3)) + (3 * -0.2 - math.exp(-0.2) - math.log(6)) + (0.7 - math.exp(0.7))
    assert float(value) == pytest.approx(expected)
    assert torch.allclose(poisson.mean(output), output.exp())
    bernoulli = BernoulliLikelihood()
    p = output.sigmoid().flatten()
    value = bernoulli(output, counts([0.0, 1.0, 1.0]))
    assert float(value) == pytest.approx(float((1 - p[0]).log() + p[1].log() + p[2].log()))
    assert torch.allclose(bernoulli.mean(output).flatten(), p)


def test_padding_changes_no_bit():
    alone, among = stays([21]), stays([21, 64])
    output = torch.randn(1, 64, 3, dtype=D).expand(2, -1, -1)
    likelihood = GaussianLikelihood(std=0.3)
    assert torch.equal(likelihood(output[:1, :21], alone)[0], likelihood(output, among)[0])


def test_an_empty_part_of_a_series_counts_nothing():
    late = stays([4, 1], first=0.0).since(2.0)
    assert torch.equal(GaussianLikelihood()(torch.ones(2, 1, 3, dtype=D), late), torch.zeros(2, dtype=D))


def test_bad_input():
    series = stays([4, 2])
    with pytest.raises(ValueError, match=r"GaussianLikelihood: got outputs \(2, 4, 2\) for values \(2, 4, 3\)"):
        GaussianLikelihood()(torch.zeros(2, 4, 2), series)
    for std in (0.0, -1.0, math.nan, math.inf, "one", True, torch.ones(1, 2)):
        with pytest.raises(ValueError, match=r"GaussianLikelihood\(std="):
            GaussianLikelihood(std)
    with pytest.raises(ValueError, match=r"series 0 has 0\.5 in channel 0, expected what a Bernoulli can be"):
        BernoulliLikelihood()(torch.zeros(1, 2, 1, dtype=D), counts([1.0, 0.5]))
    with pytest.raises(ValueError, match="series 0 has -1 in channel 0, expected what a Poisson can be"):
        PoissonLikelihood()(torch.zeros(1, 2, 1, dtype=D), counts([1.0, -1.0]))

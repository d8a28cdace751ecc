"""A mixture of normal data, whose denoiser and whose posteriors are known."""

import math

import torch
from torch import nn

import torchimplicit as ti
from tests.nn.score.gaussian import D, double

SIZE, SEEN, MODES, VARIANCE = 6, 3, 8, 0.05
MEANS = 0.9 * double(MODES, SIZE, seed=3)
STD = math.sqrt(MEANS.square().mean() + VARIANCE)


class Mixture(nn.Module):
    """The mean of the data behind the noise."""

    def forward(self, t, x):
        s = (4 * t).exp()
        u = x * (s**2 + STD**2).sqrt()
        apart = u[:, None] - MEANS
        shares = torch.softmax(-0.5 * apart.square().sum(2) / (VARIANCE + s**2), 1)
        centres = MEANS + VARIANCE / (VARIANCE + s[:, None] ** 2) * apart
        return (shares[..., None] * centres).sum(1)


def mixture():
    return ti.nn.Denoiser(Mixture(), shape=SIZE, std=STD, prediction="x", interval=None)


def measured(seed, std):
    """A measurement of the first entries of a sample, and the posterior shares of the modes and mean of the others."""
    g = torch.Generator().manual_seed(seed)
    mode = torch.randint(MODES, (1,), generator=g)
    x = MEANS[mode] + math.sqrt(VARIANCE) * torch.randn(1, SIZE, dtype=D, generator=g)
    y = x[:, :SEEN] + std * torch.randn(1, SEEN, dtype=D, generator=g)
    shares = torch.softmax(-0.5 * (y - MEANS[:, :SEEN]).square().sum(1) / (VARIANCE + std**2), 0)
    return y, shares, (shares[:, None] * MEANS[:, SEEN:]).sum(0)


def errors(x, shares, mean):
    """Total variation of the modes' shares, and the distance of the mean of what was not measured."""
    found = torch.bincount(torch.cdist(x, MEANS).argmin(1), minlength=MODES) / len(x)
    return 0.5 * float((found - shares).abs().sum()), float((x[:, SEEN:].mean(0) - mean).norm())

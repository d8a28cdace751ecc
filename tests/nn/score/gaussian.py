"""Data whose score is known: normal numbers, each of its own mean and variance."""

import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.nn.score.prediction import coefficients

D = torch.float64
MEAN, VARIANCE = torch.tensor([0.4, -0.3, 0.0], dtype=D), torch.tensor([0.5, 0.02, 1.3], dtype=D)
SCHEDULES = [ti.nn.EDM(), ti.nn.VE(), ti.nn.VP(), ti.nn.SubVP(), ti.nn.Straight()]
PREDICTIONS = ["eps", "x", "v", "edm", "flow"]


class Exact(nn.Module):
    """The network that knows the mean of normal data behind the noise; entry by entry, so that no bit is shared."""

    def __init__(self, prediction="edm", std=0.5, mean=MEAN, variance=VARIANCE):
        super().__init__()
        self.prediction, self.std = prediction, std
        self.mean, self.variance = nn.Parameter(mean.clone()), nn.Parameter(variance.clone())

    def forward(self, t, x, label=None):
        s = (4 * t).exp()
        u = x * (s**2 + self.std**2).sqrt()
        mean = self.mean if label is None else torch.where((label % 3 == 2)[:, None], 0, label[:, None] - 0.5)
        found = mean + self.variance / (self.variance + s**2) * (u - mean)
        skip, out = coefficients(self.prediction, s, self.std)
        return (found - skip * u) / out


def model(schedule=None, prediction="edm", **options):
    schedule = ti.nn.EDM() if schedule is None else schedule
    options = {"shape": 3, "interval": None} | options
    return ti.nn.Denoiser(Exact(prediction), schedule, prediction=prediction, **options)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def moved(u, s, to):
    """Where the probability flow leads normal data from one noise level to another."""
    return MEAN + ((VARIANCE + to**2) / (VARIANCE + s**2)).sqrt() * (u - MEAN)

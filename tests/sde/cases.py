"""Equations that tests of stochastic paths share."""

import torch

D = torch.float64
TS = torch.tensor([0.0, 0.5, 1.0], dtype=D)
MATRIX = torch.tensor([[0.9, -0.4], [0.3, 0.7], [-0.5, 0.2]], dtype=D)


def drift(t, y, rate, mix):
    return -rate * y * torch.cos(t)


DIFFUSIONS = {
    "diagonal": lambda t, y, rate, mix: rate * y.sin() + 0.1 * mix[:, 0],
    "scalar": lambda t, y, rate, mix: (rate * y.sin() + 0.1 * y.roll(1, 1) * mix[:, 0]).unsqueeze(-1),
    "general": lambda t, y, rate, mix: (y + rate * t).unsqueeze(-1) * mix,
    "additive": lambda t, y, rate, mix: (rate * t.unsqueeze(-1) + mix).expand(len(y), 3, 2),
}


def start(batch=2, dtype=D):
    return torch.linspace(-1.0, 1.5, 3 * batch, dtype=dtype).reshape(batch, 3)


def rate_and_mix():
    return torch.tensor(0.5, dtype=D), MATRIX.clone()

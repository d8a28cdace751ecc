"""A smooth field that depends on time, state and weights: what tests of solvers and of adjoints integrate."""

import torch


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def swirl(t, y, W):
    return torch.tanh(y @ W) * torch.cos(t)


def problem(batch=4, times=6):
    return double(batch, 3), torch.linspace(0, 2, times, dtype=torch.float64), 0.5 * double(3, 3, seed=1)

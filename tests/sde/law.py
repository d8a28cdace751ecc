"""Whether numbers follow the normal law: at fixed seeds, within what chance allows."""

import math

import torch


def check_normal(z, sigmas=4.0):
    """Mean, variance, third and fourth moment within some standard deviations; Kolmogorov and Smirnov at 1 in 1,000."""
    n, z = z.numel(), z.double().flatten()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean().item() - expected) < sigmas * math.sqrt(variance / n), f"moment {power}"
    assert distance(z) * math.sqrt(n) < 1.95


def distance(z):
    """The largest difference between the numbers' distribution and the standard normal one."""
    n = z.numel()
    cdf = torch.special.ndtr(z.double().sort().values)
    rank = torch.arange(n + 1, dtype=torch.float64) / n
    return torch.maximum((cdf - rank[:-1]).abs().max(), (cdf - rank[1:]).abs().max()).item()


def largest_correlation(rows):
    """Between any two of some rows."""
    return (torch.corrcoef(rows) - torch.eye(len(rows), dtype=rows.dtype)).abs().max().item()

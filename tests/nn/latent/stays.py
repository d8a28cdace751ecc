"""Series for the tests of models: irregular, with holes, some of one time."""

import torch

from torchimplicit.nn import Series

D = torch.float64


def rows(lengths, channels=3, seed=0, first=None):
    """Times, values and masks of series of these lengths, each with an observation at its first time."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        times = torch.rand(length, generator=draw, dtype=D).sort().values
        if first is not None:
            times[0] = first
        mask = torch.rand(length, channels, generator=draw) < 0.6
        mask[0, 0] = True
        found.append((times, torch.randn(length, channels, generator=draw, dtype=D), mask))
    return found


def stays(lengths, **options):
    return Series.of(rows(lengths, **options))

"""The random choices of one case: the same key, the same case."""

import random

import torch


class Dice:
    """Draws from generators of its own, so that the global ones can be watched."""

    def __init__(self, key):
        self._random = random.Random(key)
        self._torch = torch.Generator().manual_seed(self._random.getrandbits(60))

    def chance(self, probability):
        return self._random.random() < probability

    def pick(self, *options):
        return self._random.choice(options)

    def weighted(self, weights):
        """A key of the dictionary, as often as its weight says."""
        return self._random.choices(list(weights), list(weights.values()))[0]

    def between(self, low, high):
        """An integer, both ends included."""
        return self._random.randint(low, high)

    def uniform(self, low, high):
        return self._random.uniform(low, high)

    def power(self, low, high):
        """A number of any size, its exponent uniform."""
        return 10.0 ** self._random.uniform(low, high)

    def normal(self, *shape):
        """A float64 tensor of standard normal numbers."""
        return torch.randn(*shape, generator=self._torch, dtype=torch.float64)

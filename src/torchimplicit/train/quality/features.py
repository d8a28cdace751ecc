"""A small classifier of our own, in whose features samples are compared with data: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require
from torchimplicit.train.data.base import permutation
from torchimplicit.train.seeds import seed_of


class FeatureNetwork(nn.Module):
    """A classifier of vectors or of images whose last hidden layer is a sample's features.

    Vectors pass dense layers, images two strided convolutions. Two such networks with other seeds have other features:
    distances in them are compared within one network only.

    Args:
        shape: of a sample, `(n,)` or `(C, H, W)`.
        classes: number of classes.
        width: of the features.
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int = 32):
        """Draws the weights."""
        super().__init__()
        self.shape, self.classes, self.num_features = torch.Size(shape), classes, width
        require(self, "shape", len(self.shape) in (1, 3), "a shape (n,) or (C, H, W)")
        if len(self.shape) == 1:
            body: list[nn.Module] = [nn.Linear(self.shape[0], 128), nn.SiLU(), nn.Linear(128, width)]
        else:
            channels, height, across = self.shape
            rows, columns = (-(-size // 4) for size in (height, across))
            convolutions = (nn.Conv2d(channels, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU())
            body = [*convolutions, nn.Flatten(), nn.Linear(32 * rows * columns, width)]
        self.body = nn.Sequential(*body, nn.SiLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, width)` of samples `(B, *shape)` in [-1, 1]."""
        return self.body(x)

    def classify(self, x: Tensor) -> Tensor:
        """Classes `(B,)` of samples `(B, *shape)` in [-1, 1]."""
        return self.head(self.body(x)).argmax(1)


def train_features(samples: Tensor, labels: Tensor, classes: int, steps: int = 1500, seed: int = 0) -> FeatureNetwork:
    """A feature network trained to tell classes apart, by cross entropy; the same for the same samples and seed.

    Args:
        samples: `(N, *shape)` in [-1, 1].
        labels: `(N,)`.
        classes: number of classes.
        steps: of Adam, with 128 samples each.
        seed: of weights and order. The state of torch's generator is left as it was.
    """
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.manual_seed(seed_of("features", seed))
        network = FeatureNetwork(samples.shape[1:], classes).to(samples.device)
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        count, size = len(samples), min(128, len(samples))
        order, place, epoch = permutation(count, seed), 0, 0
        for _ in range(steps):
            if place + size > count:
                epoch, place = epoch + 1, 0
                order = permutation(count, seed_of("order", seed, epoch))
            chosen = order[place : place + size]
            place += size
            loss = nn.functional.cross_entropy(network.head(network(samples[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)

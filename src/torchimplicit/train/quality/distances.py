"""How far samples are from data: distances of two sets."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from torchimplicit.train.quality.features import FeatureNetwork
from torchimplicit.train.seeds import seed_of


def frechet_distance(features: FeatureNetwork, samples: Tensor, data: Tensor) -> float:
    r"""The Frechet distance of the normal laws of two sets' features.

    $\|m_1 - m_2\|^2 + \operatorname{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})$ with means and covariances of the features.
    It is biased upwards for few samples, by an amount that depends on their number: compare equal numbers, and beside
    them real samples that were held out. Not comparable with distances in other features, such as Inception's.

    Source: M. Heusel et al., arXiv 1706.08500.

    Args:
        features: what compares them.
        samples: `(N, *shape)` in [-1, 1].
        data: `(M, *shape)` in [-1, 1].
    """
    metric = FrechetInceptionDistance(feature=features)
    for part, real in ((data, True), (samples, False)):
        for few in part.split(1000):
            metric.update(few, real=real)
    return float(metric.compute())


def sliced_wasserstein(samples: Tensor, data: Tensor, directions: int = 256, seed: int = 0) -> float:
    r"""The Wasserstein distance of order 2 of two sets seen along random lines, the root of its mean square.

    $\left(\mathbb{E}_\theta W_2^2(\theta^\top x, \theta^\top y)\right)^{1/2}$, $\theta$ uniform on the sphere. On a
    line the distance is that of the quantiles, here of 200 of them, so that the sets may be of different sizes.

    Source: N. Bonneel et al., J. Math. Imaging Vis. 51 (2015).

    Args:
        samples: `(N, *shape)`.
        data: `(M, *shape)`.
        directions: how many lines.
        seed: of the lines.
    """
    generator = torch.Generator().manual_seed(seed_of("lines", seed))
    lines = torch.randn(data[0].numel(), directions, generator=generator).to(data)
    lines = torch.nn.functional.normalize(lines, dim=0)
    ranks = (torch.arange(200, device=data.device) + 0.5).to(data.dtype) / 200
    first, second = (torch.quantile(each.flatten(1) @ lines, ranks, dim=0) for each in (samples, data))
    return float((first - second).square().mean().sqrt())

"""Real samples to compare generated ones with, and what real ones themselves would get."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.train.quality.distances import frechet_distance, sliced_wasserstein
from torchimplicit.train.quality.features import train_features


@dataclass(frozen=True)
class Verdict:
    """How far a set of samples is from the data.

    Attributes:
        frechet: their `frechet_distance`.
        sliced: their `sliced_wasserstein`.
        agreement: the share in which the classifier sees the class that was asked for; NaN where none was.
    """

    frechet: float
    sliced: float
    agreement: float


class Reference:
    """The training samples as what others are compared with, in the features of a classifier trained on them.

    Args:
        samples: training samples `(N, *shape)` in [-1, 1]; distances are to the first `most`, the features learn from
            all.
        labels: `(N,)`.
        classes: number of classes.
        most: how many distances are to.
        seed: of the features.
    """

    def __init__(self, samples: Tensor, labels: Tensor, classes: int, most: int = 10_000, seed: int = 0):
        """Trains the classifier: seconds."""
        self.features = train_features(samples, labels, classes, seed=seed)
        self.samples = samples[:most]

    def judge(self, samples: Tensor, labels: Tensor | None = None) -> Verdict:
        """How far samples are from the training samples.

        Args:
            samples: `(M, *shape)` in [-1, 1].
            labels: classes that were asked for, `(M,)`.
        """
        with torch.no_grad():
            found = None if labels is None else self.features.classify(samples)
            agreement = float("nan") if found is None else float((found == labels).double().mean())
            distance = frechet_distance(self.features, samples, self.samples)
            return Verdict(distance, sliced_wasserstein(samples, self.samples), agreement)

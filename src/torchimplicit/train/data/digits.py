"""The handwritten digits of scikit-learn: real data that comes with a dependency."""

from __future__ import annotations

import torch

from torchimplicit.train.data.base import Splits, permutation
from torchimplicit.train.data.images import ImageData, Images
from torchimplicit.train.data.pictures import PictureFormat

MEAN, STD, LEVELS = 4.9, 6.0, 17


class Digits(ImageData):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8: nothing to download. 1,257 / 180 / 360 samples.

    Args:
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
    """

    classes = 10

    def __init__(self, batch_size: int = 64, seed: int = 0):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.save_hyperparameters()

    def format(self) -> PictureFormat:
        """8 x 8, white on black, of 17 levels."""
        return PictureFormat("grey", (8, 8), (MEAN,), (STD,), LEVELS)

    def load(self) -> Splits:
        """The splits, at random but fixed."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)  # type: ignore[attr-defined]
        labels = torch.from_numpy(bunch.target)  # type: ignore[attr-defined]
        order = permutation(len(labels), seed=0)
        test, rest = order[:360], order[360:]
        rest = rest[permutation(len(rest), self.seed)]
        return Splits(*(Images(images[part], labels[part], MEAN, STD) for part in (rest[180:], rest[:180], test)))

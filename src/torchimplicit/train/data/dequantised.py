"""Images of whole numbers with noise between these, so that they have a density."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import require_count
from torchimplicit.train.data.base import DataError, RecipeData, Splits, permutation
from torchimplicit.train.data.mnist import MNIST
from torchimplicit.train.seeds import seed_of


class Dequantised(Dataset):
    r"""Whole numbers plus noise, uniform in [0, 1), and their labels.

    Without the noise, a density could have a spike at every whole number and a likelihood without bound. With it, the
    mean log-density is at most the log-probability of the whole numbers themselves, $\int_0^1 \log p(y + u)\,du \le
    \log \int_0^1 p(y + u)\,du$.

    Source: L. Theis, A. van den Oord, M. Bethge, arXiv 1511.01844, section 3.1.

    Args:
        levels: `(N, ...)`, whole numbers.
        labels: `(N,)`, whole numbers.
        seed: of the noise.
        fresh: draws noise anew for every batch, from torch's own generator, as training should.
    """

    def __init__(self, levels: Tensor, labels: Tensor, seed: int, fresh: bool = False):
        """Keeps the numbers; draws no noise yet."""
        self.levels, self.labels, self.seed, self.fresh = levels, labels.long(), seed, fresh

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """All samples with their first noise, and all labels."""
        noise = torch.rand(self.levels.shape, generator=torch.Generator().manual_seed(self.seed))
        return self.levels + noise, self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        samples, labels = self.__getitems__([index])
        return samples[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once."""
        if not self.fresh:
            return self.tensors[0][indices], self.labels[indices]
        chosen = self.levels[indices].float()
        return chosen + torch.rand_like(chosen), self.labels[indices]


class DequantisedData(RecipeData):
    """Base of the data modules of dequantised images: a subclass adds `levels`, `classes` and `parts`.

    A pixel is one of `levels` whole numbers from 0 on, with uniform noise added. Nothing is scaled, so that a density
    of these images is one in the units of a pixel.
    """

    levels: int
    classes: int

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Whole numbers and labels of "train", "val" and "test"."""
        raise NotImplementedError

    def load(self) -> Splits:
        """The splits; noise is drawn anew in training only.

        Raises:
            DataError: a number is none of the levels.
        """
        splits = {}
        for name, (levels, labels) in self.parts().items():
            low, high = int(levels.min()), int(levels.max())
            if low < 0 or high >= self.levels:
                raise DataError(
                    f"{type(self).__name__}, {name}: got numbers from {low} to {high}, expected whole numbers from 0 "
                    f"to {self.levels - 1}."
                )
            seed = seed_of(type(self).__name__, name, 0 if name == "test" else self.seed)
            splits[name] = Dequantised(levels, labels, seed, fresh=name == "train")
        return Splits(**splits)


class DequantisedDigits(DequantisedData):
    """The 1,797 handwritten digits of scikit-learn as vectors of 64 numbers in [0, 17): 1,257 / 180 / 360 samples.

    Pixels are whole numbers from 0 to 16, with uniform noise added. The splits are those of `Digits`.

    Args:
        batch_size: samples a batch, in every process.
        seed: of the training/validation split, of the shuffling and of the noise. The test split is always the same.
    """

    levels, classes = 17, 10

    def __init__(self, batch_size: int = 128, seed: int = 0):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        require_count(self, "batch_size")
        self.save_hyperparameters()

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of every split vectors and labels, at random but fixed."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        levels, labels = (torch.from_numpy(each) for each in (bunch.data, bunch.target))  # type: ignore[attr-defined]
        order = permutation(len(levels), seed=0)
        test, rest = order[:360], order[360:]
        rest = rest[permutation(len(rest), self.seed)]
        chosen = {"train": rest[180:], "val": rest[:180], "test": test}
        return {name: (levels[part].to(torch.uint8), labels[part]) for name, part in chosen.items()}


class DequantisedMNIST(DequantisedData):
    """MNIST as images `(1, 28, 28)` of numbers in [0, 256): 55,000 / 5,000 / 10,000 samples, those of `MNIST`.

    Pixels are whole numbers from 0 to 255, with uniform noise added.

    Args:
        data_dir: see `MNIST`.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split, of the shuffling and of the noise. The test split is always the same.
        validation: samples held out of the training set.
    """

    levels, classes = 256, 10

    def __init__(self, data_dir: str | None = None, batch_size: int = 64, seed: int = 0, validation: int = 5000):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.validation = data_dir, validation
        require_count(self, "batch_size", "validation")
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def prepare_data(self) -> None:
        """Downloads, in one process of the machine, where there is no folder to read."""
        self._plain().prepare_data()

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of every split images and labels."""
        splits = self._plain().load()
        return {name: (part.images, part.labels) for name, part in splits._asdict().items()}

    def _plain(self) -> MNIST:
        return MNIST(self.data_dir, seed=self.seed, validation=self.validation)

"""Images of whole numbers with noise between these, so that they have a density."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.train.data.base import RecipeData, Splits, permutation
from torchimplicit.train.data.tables import Rows
from torchimplicit.train.seeds import seed_of


class Dequantised(Rows):
    r"""Whole numbers plus noise, uniform in [0, 1).

    Without the noise, a density could have a spike at every whole number and a likelihood without bound. With it, the
    mean log-density is at most the log-probability of the whole numbers themselves, $\int_0^1 \log p(y + u)\,du \le
    \log \int_0^1 p(y + u)\,du$.

    Source: L. Theis, A. van den Oord, M. Bethge, arXiv 1511.01844, section 3.1.

    Args:
        levels: `(N, n)`, whole numbers.
        seed: of the noise.
        fresh: draws noise anew for every batch, from torch's own generator, as training should.
    """

    def __init__(self, levels: Tensor, seed: int, fresh: bool = False):
        """Draws the noise."""
        self.levels, self.fresh = levels.float(), fresh
        super().__init__(self.levels + torch.rand(levels.shape, generator=torch.Generator().manual_seed(seed)))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """A whole batch at once."""
        if not self.fresh:
            return super().__getitems__(indices)
        chosen = self.levels[indices]
        return (chosen + torch.rand_like(chosen),)


class DequantisedDigits(RecipeData):
    """The 1,797 handwritten digits of scikit-learn as vectors of 64 numbers in [0, 17): 1,257 / 180 / 360 samples.

    Pixels are whole numbers from 0 to 16, with uniform noise added. Nothing is scaled, so that a density of these
    vectors is one in the units of a pixel. The splits are those of `Digits`.

    Args:
        batch_size: samples a batch, in every process.
        seed: of the training/validation split, of the shuffling and of the noise. The test split is always the same.
    """

    def __init__(self, batch_size: int = 128, seed: int = 0):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        require_count(self, "batch_size")
        self.save_hyperparameters()

    def load(self) -> Splits:
        """The splits, at random but fixed."""
        from sklearn.datasets import load_digits

        levels = torch.from_numpy(load_digits().data)  # type: ignore[attr-defined]
        order = permutation(len(levels), seed=0)
        test, rest = order[:360], order[360:]
        rest = rest[permutation(len(rest), self.seed)]
        parts = {"train": (rest[180:], self.seed), "val": (rest[:180], self.seed), "test": (test, 0)}
        return Splits(
            *(
                Dequantised(levels[part], seed_of(type(self).__name__, name, seed), fresh=name == "train")
                for name, (part, seed) in parts.items()
            )
        )

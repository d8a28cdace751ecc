"""The copy memory task: symbols, a long silence, and the order to repeat them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import require, require_count
from torchimplicit.train.data.base import RecipeData, Splits
from torchimplicit.train.seeds import seed_of

BLANK = 0
ALPHABET = 8  # the symbols are 1 to 8
ORDER = 9  # stands where recall is due, first one position before it


class CopyMemory(RecipeData):
    """Ten symbols out of eight, `blanks` positions of nothing, and ten in which to say what they were.

    A sequence has `blanks + 20` positions: the symbols, blanks, and eleven times the order to repeat, of which the
    first takes the place of the last blank. The target is blank but at the last ten positions. Who remembers nothing
    guesses there, and has a cross entropy of `10 ln(8) / (blanks + 20)` at best, which is `floor`. Training samples are
    drawn anew in every epoch; those of validation and test follow from the seed.

    Source: S. Hochreiter, J. Schmidhuber, Neural Computation 9 (1997) 1735; in this form S. Bai, J. Z. Kolter,
    V. Koltun, arXiv 1803.01271, section 4.

    Args:
        blanks: how long to remember; T of the paper.
        symbols: how many.
        easy_blanks: those of the training samples of the first epochs: a curriculum.
        easy_epochs: how many these are.
        batch_size: samples a batch, in every process.
        train_samples: of an epoch.
        eval_samples: of validation, and of test.
        seed: of all that is random.

    Attributes:
        vocabulary: number of kinds of positions, blank and order included.
        length: of a sequence.
        floor: the loss without a memory.
    """

    vocabulary = ALPHABET + 2

    def __init__(
        self,
        blanks: int = 400,
        symbols: int = 10,
        easy_blanks: int = 10,
        easy_epochs: int = 0,
        batch_size: int = 8,
        train_samples: int = 800,
        eval_samples: int = 256,
        seed: int = 0,
    ):
        """Draws nothing yet."""
        super().__init__(batch_size, seed)
        self.blanks, self.symbols = blanks, symbols
        self.easy_blanks, self.easy_epochs = easy_blanks, easy_epochs
        self.train_samples, self.eval_samples = train_samples, eval_samples
        require_count(self, "blanks", "symbols", "easy_blanks", "batch_size", "train_samples", "eval_samples")
        require_count(self, "easy_epochs", least=0)
        fits = not easy_epochs or easy_blanks <= blanks
        require(self, "easy_blanks", fits, f"no more than blanks={blanks}")
        self.save_hyperparameters()

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.blanks + 2 * self.symbols

    @property
    def floor(self) -> float:
        """The smallest loss without a memory: sure of the blanks, guessing the symbols."""
        return self.symbols * float(torch.tensor(float(ALPHABET)).log()) / self.length

    def load(self) -> Splits:
        """The splits; the training set draws as it is read."""
        fixed = (
            Copies(self.eval_samples, lambda: self.blanks, self.symbols, seed_of("copy", name, self.seed))
            for name in ("val", "test")
        )
        return Splits(Copies(self.train_samples, self._training_blanks, self.symbols), *fixed)

    def _training_blanks(self) -> int:
        easy = self.trainer is not None and self.trainer.current_epoch < self.easy_epochs
        return self.easy_blanks if easy else self.blanks


class Copies(Dataset):
    """Pairs of sequences `(length,)`, what is seen and what is to be said, both whole numbers.

    Args:
        count: how many.
        blanks: says how many there are, whenever a batch is taken.
        symbols: see `CopyMemory`.
        seed: draws all symbols once; None draws them from torch's generator whenever they are taken.
    """

    def __init__(self, count: int, blanks: Callable[[], int], symbols: int, seed: int | None = None):
        """Draws the symbols, if there is a seed."""
        self.count, self.blanks, self.symbols = count, blanks, symbols
        self.fixed = None if seed is None else _symbols(count, symbols, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        seen, said = self.__getitems__([index])
        return seen[0], said[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once, both `(B, length)`."""
        symbols = _symbols(len(indices), self.symbols) if self.fixed is None else self.fixed[indices]
        silence = symbols.new_full((len(symbols), self.blanks()), BLANK)
        order = symbols.new_full((len(symbols), self.symbols + 1), ORDER)
        seen = torch.cat((symbols, silence[:, 1:], order), 1)
        said = torch.cat((torch.full_like(symbols, BLANK), silence, symbols), 1)
        return seen, said


def _symbols(count: int, symbols: int, generator: torch.Generator | None = None) -> Tensor:
    return torch.randint(1, ALPHABET + 1, (count, symbols), generator=generator)

"""Sudoku with more given than the file says: cells of the solution shown, the board turned into an equivalent one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import require
from torchimplicit.train.data.base import Splits
from torchimplicit.train.data.sudoku import Sudoku


class ShownSudoku(Sudoku):
    """`Sudoku` with some of the solution shown, and every training board another, equivalent one if asked for.

    A board that shows more than one with a single solution has that single solution, too. Training draws how much is
    shown, and which cells, every time anew; validation and test show the same cells in every run.

    Args:
        shown: cells given, on average over training boards drawn between these two numbers, those of the file among
            them; None shows what the file does.
        evaluated: cells given in validation and test; None shows what the file does.
        symmetries: training boards have their numbers renamed, their bands, stacks, rows and columns permuted, and are
            transposed or not, at random: what leads from one valid board to another. Who wants the rules to be learned
            from boards alone leaves them out.
        **options: see `Sudoku`.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        size: int = 9,
        file: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        validation: float = 0.05,
        test: float = 0.1,
        shown: Sequence[int] | None = (36, 70),
        evaluated: int | None = 36,
        symmetries: bool = False,
    ):
        """Loads nothing yet."""
        super().__init__(data_dir, size, file, batch_size, seed, validation, test)
        self.shown, self.evaluated, self.symmetries = shown, evaluated, symmetries
        cells = size * size
        holds = shown is None or (len(shown) == 2 and 0 <= shown[0] <= shown[1] < cells)
        require(self, "shown", holds, f"None or two numbers of cells, the lower first, below {cells}")
        require(self, "evaluated", evaluated is None or 0 <= evaluated < cells, f"None or a number below {cells}")

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: see `Sudoku`.
        """
        train, val, test = super().load()
        return Splits(
            Boards(*train.tensors, self.shown, self.symmetries),  # pyright: ignore
            *(Boards(*split.tensors, evaluated(self.evaluated), seed=1) for split in (val, test)),  # pyright: ignore
        )


class Boards(Dataset):
    """Boards and solutions `(N, cells)`, with more cells shown, and turned into equivalent ones, as they are taken.

    Args:
        puzzles: 0 for a blank.
        solutions: the whole numbers from 1.
        shown: see `ShownSudoku`.
        symmetries: see `ShownSudoku`.
        seed: show the same cells every time; None draws them anew.
    """

    def __init__(
        self,
        puzzles: Tensor,
        solutions: Tensor,
        shown: Sequence[int] | None = None,
        symmetries: bool = False,
        seed: int | None = None,
    ):
        """Keeps the boards; shows what is shown once and for all."""
        if seed is not None:
            puzzles = reveal(puzzles, solutions, shown, torch.Generator().manual_seed(seed))
            shown = None
        self.tensors = puzzles, solutions
        self.shown, self.symmetries = shown, symmetries

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        puzzles, solutions = self.__getitems__([index])
        return puzzles[0], solutions[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once."""
        puzzles, solutions = (each[torch.as_tensor(indices)] for each in self.tensors)
        puzzles = reveal(puzzles, solutions, self.shown)
        return equivalent(puzzles, solutions) if self.symmetries else (puzzles, solutions)


def evaluated(cells: int | None) -> tuple[int, int] | None:
    """A range of one number."""
    return None if cells is None else (cells, cells)


def reveal(
    puzzles: Tensor, solutions: Tensor, shown: Sequence[int] | None, generator: torch.Generator | None = None
) -> Tensor:
    """Boards `(B, cells)` with random cells of their solutions filled in, until as many are given as shall be."""
    if shown is None:
        return puzzles
    count = torch.randint(shown[0], shown[1] + 1, (len(puzzles), 1), generator=generator)
    order = torch.rand(puzzles.shape, generator=generator) - (puzzles > 0).float()  # given ones first
    return torch.where((puzzles > 0) | (order.argsort(1).argsort(1) < count), solutions, 0)


def equivalent(*boards: Tensor) -> tuple[Any, ...]:
    """Boards `(B, cells)` under one random symmetry of Sudoku each, the same for all tensors; 0 stays 0."""
    batch, cells = boards[0].shape
    size = math.isqrt(cells)
    names = torch.nn.functional.pad(torch.rand(batch, size).argsort(1) + 1, (1, 0))
    rows, columns = _lines(batch, size), _lines(batch, size)
    place = rows.unsqueeze(2) * size + columns.unsqueeze(1)
    place = torch.where(torch.rand(batch, 1, 1) < 0.5, place, place.mT).flatten(1)
    return tuple(names.gather(1, each.gather(1, place)) for each in boards)


def _lines(batch: int, size: int) -> Tensor:
    """An order of the rows `(B, size)`, in which those of a band stay together."""
    block = math.isqrt(size)
    bands, within = torch.rand(batch, block).argsort(1), torch.rand(batch, block, block).argsort(2)
    return (bands.unsqueeze(2) * block + within).flatten(1)

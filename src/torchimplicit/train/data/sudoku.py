"""Sudoku: boards with blanks, and their solutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.files import read_arrays, reading, require_size, require_unpacked
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, RecipeData, Splits, permutation
from torchimplicit.train.data.tables import Rows

FILES = {4: "sudoku4_optnet10k.npz", 9: "sudoku9_norvig10k.npz"}
ARRAYS = "puzzles", "solutions"
TENSORS = "features.pt", "labels.pt"
SOURCE = "https://github.com/locuslab/optnet, sudoku/data/2"


class Sudoku(RecipeData):
    """Boards of 4 x 4 or 9 x 9 cells: what is given, 0 for a blank, and the solution, whole numbers `(B, cells)` both.

    The splits share no solution: there are but 288 full boards of 4 x 4, which a network could know by heart.

    Args:
        data_dir: folder, or one with a folder `sudoku`, that holds the file; or, for 4 x 4, `features.pt` and
            `labels.pt` as published with OptNet (tensors `(N, 4, 4, 4)`, 1 in the place of the number). None looks at
            the environment variable `TORCHIMPLICIT_DATA`.
        size: 4 or 9, cells in a row.
        file: NumPy archive with `puzzles` and `solutions`, `(N, size, size)` or `(N, size * size)`, 0 for a blank.
            None: `sudoku4_optnet10k.npz` or `sudoku9_norvig10k.npz`.
        batch_size: boards a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
        validation: fraction of the solutions whose boards are held out to validate.
        test: fraction of the solutions whose boards are held out to test.
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
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.data_dir, self.size, self.validation, self.test = data_dir, size, validation, test
        require(self, "size", size in FILES, "4 or 9")
        require(self, "validation", 0 < validation < 1, "a fraction in (0, 1)")
        require(self, "test", 0 < test < 1 - validation, f"a fraction in (0, {1 - validation:g})")
        self.file = FILES[size] if file is None else file
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the file is absent or broken, or holds something else, or too few boards for the splits.
        """
        puzzles, solutions = self._read()
        _, which = solutions.unique(dim=0, return_inverse=True)
        count = int(which.max()) + 1
        test, validation = round(self.test * count), round(self.validation * count)
        if min(test, validation, count - test - validation) < 1:
            raise DataError(f"Sudoku: {self.file} has {count} different solutions, too few for three splits")
        order = permutation(count, 0)
        rest = order[test:][permutation(count - test, self.seed)]
        groups = rest[validation:], rest[:validation], order[:test]
        places = [torch.isin(which, group) for group in groups]
        return Splits(*(Rows(puzzles[place], solutions[place]) for place in places))

    def _read(self) -> tuple[Tensor, Tensor]:
        folder = self.folder()
        places = [] if folder is None else [folder, folder / "sudoku"]
        for place in places:
            if (place / self.file).is_file():
                return _checked(place / self.file, *_archive(place / self.file), self.size)
            if self.size == 4 and all((place / name).is_file() for name in TENSORS):
                return _checked(place, *_tensors(place), self.size)
        names = f"{self.file}, or {' and '.join(TENSORS)}," if self.size == 4 else self.file
        looked = f"looked for {names} in {' and '.join(map(str, places))}" if places else "no folder to look in"
        hint = f"fetch {' and '.join(TENSORS)} from {SOURCE}" if self.size == 4 else "save boards as such an archive"
        raise DataError(
            f"Sudoku: {looked}. Try to {hint}, and --data-dir (or the variable {DATA_VARIABLE}) with their folder."
        )


def _archive(path: Path) -> tuple[Tensor, Tensor]:
    with reading("Sudoku", path, "Try to fetch or make it again."):
        puzzles, solutions = read_arrays(path, *ARRAYS)
        if puzzles.dtype.kind not in "iu" or solutions.dtype.kind not in "iu":
            raise ValueError(f"puzzles of {puzzles.dtype}, solutions of {solutions.dtype}; expected whole numbers")
        return torch.from_numpy(puzzles.astype(np.int64)), torch.from_numpy(solutions.astype(np.int64))


def _tensors(folder: Path) -> tuple[Tensor, Tensor]:
    """Puzzles and solutions `(N, 4, 4)` from tensors `(N, 4, 4, 4)` with a one in the place of the number."""
    puzzles, solutions = (_numbers(folder / name) for name in TENSORS)
    return puzzles, solutions


def _numbers(path: Path) -> Tensor:
    with reading("Sudoku", path, f"Try to fetch both again from {SOURCE}."):
        require_unpacked(path)
        hot = torch.load(path, weights_only=True)
        if not isinstance(hot, Tensor) or hot.dim() != 4 or hot.shape[1:] != (4, 4, 4):
            got = tuple(hot.shape) if isinstance(hot, Tensor) else type(hot).__name__
            raise ValueError(f"got {got}, expected a tensor (N, 4, 4, 4)")
        require_size(hot.numel() * 8)  # whatever its storage: it may be one number, expanded
        return (hot > 0).long() @ torch.arange(1, 5)


def _checked(path: Path, puzzles: Tensor, solutions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Both as `(N, cells)`, if they are what they should be."""
    shapes = (size, size), (size * size,)
    if puzzles.shape != solutions.shape or puzzles.shape[1:] not in shapes or not len(puzzles):
        got = f"puzzles {tuple(puzzles.shape)}, solutions {tuple(solutions.shape)}"
        raise DataError(f"Sudoku(size={size}): {path} has {got}; expected (N, {size}, {size}) of both")
    puzzles, solutions = puzzles.flatten(1), solutions.flatten(1)
    given = puzzles > 0
    wrong = (solutions < 1) | (solutions > size) | (given & (puzzles != solutions)) | (puzzles < 0)
    if bool(wrong.any()):
        board = int(wrong.any(1).nonzero()[0])
        raise DataError(
            f"Sudoku(size={size}): board {board} of {path}: expected a solution of the numbers 1 to {size} that agrees "
            "with what is given, and 0 for a blank"
        )
    return puzzles, solutions

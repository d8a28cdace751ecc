"""Lynx and hare of the Hudson Bay: how many pelts were bought, 1900 to 1920."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.files import read_bytes, reading
from torchimplicit.nn import Series
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, Splits
from torchimplicit.train.data.series import SeriesData, SeriesRows

NAME, FOLDER = "hudson_bay_lynx_hare.csv", "timeseries"
SOURCE = "https://github.com/stan-dev/example-models/tree/master/knitr/lotka-volterra"
HINT = f"Expected lines of Year, Lynx, Hare; try to fetch it again from {SOURCE}."


class LynxHare(SeriesData):
    """One series: thousands of pelts of lynx and hare, 21 years, as standardised logarithms; times in decades.

    Training sees the first years, again and again; the test predicts the last ones from them. The validation split is
    the training years: there is nothing to choose by.

    Source: E. P. Odum, Fundamentals of Ecology, 1953; B. Carpenter's study of it, for the table.

    Args:
        data_dir: folder with `hudson_bay_lynx_hare.csv`, or with a folder `timeseries` that has it. None looks at the
            environment variable `TORCHIMPLICIT_DATA`.
        held: years at the end, to be predicted in the test.
        steps: how many times the series is seen in an epoch, in training.
        seed: of nothing; every data module has one.
    """

    variables = ("lynx", "hare")

    def __init__(self, data_dir: str | None = None, held: int = 4, steps: int = 50, seed: int = 0):
        """Loads nothing yet."""
        super().__init__(batch_size=1, seed=seed)
        self.data_dir, self.held, self.steps = data_dir, held, steps
        require_count(self, "held", "steps")
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the file is absent or broken, or no two years are left to learn from.
        """
        years, pelts = read_lynx_hare(self._path())
        if self.held > len(years) - 2:
            raise DataError(f"LynxHare(held={self.held}): expected at most {len(years) - 2} of the {len(years)} years")
        known = pelts.log()[: -self.held]
        values = (pelts.log() - known.mean(0)) / known.std(0)
        series = Series.of([((years - years[0]) / 10, values)])
        seen = Series.of([(series.times[0, : -self.held], values[: -self.held])])
        label = torch.full((1,), torch.nan)
        again = SeriesRows(seen[torch.zeros(self.steps, dtype=torch.long)], label.expand(self.steps))
        return Splits(again, SeriesRows(seen, label), SeriesRows(series, label, float(series.times[0, -self.held])))

    def _path(self) -> Path:
        folder = self.folder()
        places = [] if folder is None else [folder, folder / FOLDER]
        for place in places:
            if (place / NAME).is_file():
                return place / NAME
        looked = f"looked for {NAME} in {' and '.join(map(str, places))}" if places else "no folder to look in"
        raise DataError(
            f"LynxHare: {looked}. Try to fetch it from {SOURCE}, and --data-dir (or the variable {DATA_VARIABLE}) with "
            "its folder."
        )


def read_lynx_hare(path: Path) -> tuple[Tensor, Tensor]:
    """Years `(T,)`, and thousands of pelts `(T, 2)`, lynx and hare.

    Raises:
        DataError: the file is no such table.
    """
    with reading("LynxHare", path, HINT):
        text = "\n".join(line for line in read_bytes(path).decode().splitlines() if not line.startswith("#"))
        lines = csv.DictReader(StringIO(text), skipinitialspace=True)
        rows = torch.tensor([[float(line[name]) for name in ("Year", "Lynx", "Hare")] for line in lines])
        if rows.dim() != 2 or not bool((rows > 0).all() and (rows[:, 0].diff() > 0).all()):
            raise ValueError("years that do not increase, or numbers that are not positive")
    return rows[:, 0], rows[:, 1:]

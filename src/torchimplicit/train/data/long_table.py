"""A user's own irregular series: a table with a line for every observation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from torchimplicit.files import reading
from torchimplicit.nn import Series
from torchimplicit.train.data.base import DataError, FittingData, Splits, permutation
from torchimplicit.train.data.csv_rows import header_of, lines_of, number
from torchimplicit.train.data.series import SeriesData

COLUMNS = ("id", "time", "variable", "value")
HINT = f"Expected a CSV file with the columns {', '.join(COLUMNS)}, a line for every observation."


class Table(NamedTuple):
    """Series from a table.

    Attributes:
        ids: of the series, in the order in which the table first has them.
        variables: names of the channels.
        series: in the table's own units.
    """

    ids: tuple[str, ...]
    variables: tuple[str, ...]
    series: Series


class LongTable(SeriesData, FittingData):
    """Irregular series from a CSV file with a line for every observation: its series' id, time, variable and value.

    Lines may stand in any order. Times are brought to 0 to 1, the earliest and the latest of the table; values are
    standardised by the mean and the deviation of every variable over the training series. A fifth of the series is the
    test split, a tenth validates.

    Args:
        path: of the file.
        task: see `SeriesData`.
        seen: see `SeriesData`.
        variables: which ones, and in which order; another one in the table is an error. None takes those of the table,
            sorted by name.
        columns: the names of the four columns; others are not read.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
    """

    inferred: ClassVar[tuple[str, ...]] = ("variables",)
    sized: ClassVar[tuple[str, ...]] = ("channels",)

    def __init__(
        self,
        path: str,
        task: str = "extrapolation",
        seen: float = 0.5,
        variables: Sequence[str] | None = None,
        columns: Sequence[str] = COLUMNS,
        batch_size: int = 50,
        seed: int = 0,
    ):
        """Loads nothing yet."""
        super().__init__(task, seen, batch_size, seed)
        self.path, self.columns = path, columns
        self.variables = tuple(variables or ())
        self._table: Table | None = None
        self.save_hyperparameters(ignore="path")  # a checkpoint says nothing about somebody's disk

    def look(self) -> None:
        """Reads the file.

        Raises:
            DataError: the file is absent or broken.
        """
        self._read()

    def sizes(self) -> dict[str, int]:
        """The number of variables."""
        return {"channels": len(self.variables)}

    def describe(self) -> str:
        """Series and variables."""
        table = self._read()
        names = ", ".join(self.variables[:8]) + (", ..." if len(self.variables) > 8 else "")
        return f"{len(table.ids)} series of {len(self.variables)} variables ({names})"

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the file is absent or broken, or has too few series.
        """
        table = self._read()
        count = len(table.ids)
        tested, held = count // 5, max(count // 10, 1)
        if tested < 1 or count - tested - held < 1:
            raise DataError(f"LongTable: {self.path} has {count} series, expected 5 at least, to train, validate, test")
        order = permutation(count, 0)
        test, rest = order[:tested], order[tested:]
        rest = rest[permutation(len(rest), self.seed)]
        val, train = rest[:held], rest[held:]
        series = _standardised(table.series, table.series[train])
        return self.divided(series, torch.full((count,), torch.nan), (train, val, test), table.ids)

    def _read(self) -> Table:
        if self._table is None:
            self._table = read_long(Path(self.path), self.variables or None, self.columns)
            self.variables = self._table.variables
        return self._table


def read_long(path: Path, variables: Sequence[str] | None = None, columns: Sequence[str] = COLUMNS) -> Table:
    """Series from a CSV file with a line for every observation, in any order.

    Args:
        path: of the file; its first line names the columns.
        variables: see `LongTable`.
        columns: see `LongTable`.

    Raises:
        DataError: the file is absent or no such table; a line with an unknown variable, with a time or a value that is
            no finite number, with more fields than there are columns, or with the same id, time and variable as
            another one, is named by its number.
    """
    if len(columns) != len(COLUMNS):
        raise DataError(f"LongTable(columns={list(columns)}): expected four names, for {', '.join(COLUMNS)}")
    found: dict[str, dict[tuple[float, str], float]] = {}
    with reading("LongTable", path, HINT):
        header = header_of(path)
        absent = [name for name in columns if name not in header]
        if absent:
            raise ValueError(f"no column {absent[0]!r}, but {', '.join(header) or 'nothing'}")
        for at, line in lines_of(path):
            one, time, variable, value = (line[name] for name in columns)
            place = f"{at}: "
            if variables is not None and variable not in variables:
                raise ValueError(f"{place}variable {variable!r}, expected one of {', '.join(variables)}")
            key = number(time, f"{place}time"), variable
            row = found.setdefault(one, {})
            if key in row:
                raise ValueError(f"{place}series {one!r} has variable {variable!r} at time {time} twice, expected once")
            row[key] = number(value, f"{place}value")
        if not found:
            raise ValueError("no lines, expected one for every observation")
    names = tuple(variables or sorted({name for row in found.values() for _, name in row}))
    return Table(tuple(found), names, Series.of([_series(row, names) for row in found.values()]))


def _series(row: dict[tuple[float, str], float], names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    times = sorted({time for time, _ in row})
    at, channel = {time: i for i, time in enumerate(times)}, {name: i for i, name in enumerate(names)}
    values = torch.full((len(times), len(names)), torch.nan, dtype=torch.float64)
    for (time, name), value in row.items():
        values[at[time], channel[name]] = value
    return torch.tensor(times, dtype=torch.float64), values


def _standardised(series: Series, known: Series) -> Series:
    """Times from 0 to 1, and values by the mean and the deviation of what is known, in float32."""
    from torchimplicit.train.networks.series.base import Units

    units = Units(series.channels).double()
    units.settle(known)
    start, end = (f(series.times[series.present]) for f in (torch.min, torch.max))
    times = (series.times - start) / (end - start if end > start else 1.0)
    return Series(times, (series.values - units.mean) / units.std, series.mask).to(torch.float32)

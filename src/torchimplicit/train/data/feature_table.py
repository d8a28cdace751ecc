"""A user's own table: a CSV file with a line for every sample, features and a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.files import reading
from torchimplicit.train.data.base import FittingData, Splits, permutation, require_parts
from torchimplicit.train.data.csv_rows import Line, header_of, lines_of, number
from torchimplicit.train.data.tables import Rows

HINT = "Expected a CSV file whose first line names the columns, and then a line for every sample."
MOST = 50  # different words in a column of words, or classes


class FeatureTable(FittingData):
    """Features and a target from a CSV file whose first line names the columns; fields are parted by `,`, `;` or tab.

    Numbers are standardised by the training lines; a column of words becomes one feature a word. Parts of the lines
    (for classes, of every class) are set aside, at random but fixed.

    Args:
        path: of the file.
        target: the column that is to be predicted; None takes the last.
        task: "classification" into the words or numbers of that column, or "regression" of its numbers.
        columns: those of the features; None takes all others. Leave out what is no feature, such as a running number.
        words: the words of every column that has no numbers, in the order of their features. None finds them.
        labels: names of the classes, in the order of their numbers. None takes what the target has, sorted.
        mean: of the features that are numbers, over the training lines, by their columns. None measures it.
        std: likewise; and of the target, in regression.
        validation: part of the lines that validates.
        test: part of the lines that is the test split.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
    """

    inferred: ClassVar[tuple[str, ...]] = ("target", "columns", "words", "labels", "mean", "std")
    sized: ClassVar[tuple[str, ...]] = ("features", "outputs", "classes")

    def __init__(
        self,
        path: str,
        target: str | None = None,
        task: Literal["classification", "regression"] = "classification",
        columns: list[str] | None = None,
        words: dict[str, list[str]] | None = None,
        labels: list[str] | None = None,
        mean: dict[str, float] | None = None,
        std: dict[str, float] | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        batch_size: int = 64,
        seed: int = 0,
    ):
        """Loads nothing yet."""
        super().__init__(batch_size, seed)
        self.path, self.task = path, task
        self.target: Any = target  # this and what follows may be None until `look` has settled it
        self.columns: Any = columns
        self.words: Any = words
        self.labels: Any = labels
        self.mean: Any = mean
        self.std: Any = std
        self.part, self.tested = validation, test
        require(self, "task", task in ("classification", "regression"), "'classification' or 'regression'")
        require_parts(self, validation, test)
        self._lines: dict[str, list[Line]] = {}

    @property
    def classes(self) -> int:
        """How many; 0 in regression."""
        return len(self.labels or ())

    def names(self) -> list[str]:
        """Of the classes."""
        return list(self.labels or ())

    @property
    def features(self) -> int:
        """How many a line has: one a column of numbers, and one a word of the others."""
        return sum(len((self.words or {}).get(column, [column])) for column in self.columns or ())

    def sizes(self) -> dict[str, int]:
        """Features, outputs, and classes where there are any."""
        if self.task == "regression":
            return {"features": self.features, "outputs": 1}
        return {"features": self.features, "outputs": self.classes, "classes": self.classes}

    def describe(self) -> str:
        """Features, target and splits."""
        counts = " + ".join(str(len(self._lines[name])) for name in Splits._fields)
        names = ", ".join(self.names()[:8]) + (", ..." if self.classes > 8 else "")
        what = f"{self.classes} classes ({names})" if self.classes else "a number"
        return (
            f"{counts} lines (train + val + test), {self.features} features of {len(self.columns or ())} "
            f"columns; {self.target!r}: {what}"
        )

    def look(self) -> None:
        """Reads the file, and finds columns, words, classes, mean and deviation.

        Raises:
            DataError: the file is absent or no such table; a field that cannot be used is named by its line.
        """
        if self._lines:
            return
        with reading("FeatureTable", Path(self.path), HINT):
            self._settle_columns(header_of(Path(self.path)))
            lines = list(lines_of(Path(self.path)))
            if not lines:
                raise ValueError("no lines below the first, expected one for every sample")
            self._settle_words(lines)
            groups = self._settle_labels(lines)
            parts = _divided(groups, self.part, self.tested, self.seed)
            found = {name: [lines[i] for i in rows] for name, rows in zip(Splits._fields, parts, strict=True)}
            self._settle_scale(found["train"])
        self._lines = found

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: see `look`.
        """
        self.look()
        with reading("FeatureTable", Path(self.path), HINT):
            return Splits(*(self._rows(self._lines[name]) for name in Splits._fields))

    def encode(self, line: Line) -> Tensor:
        """The features of a line, `(features,)`; the table must have been looked at, or be that of a checkpoint.

        Raises:
            ValueError: a field cannot be used.
        """
        values: list[float] = []
        for column in self.columns:
            if column not in line.fields:
                raise ValueError(f"{line.place}: no column {column!r}, but {', '.join(line.fields)}")
            text = line.fields[column]
            known = (self.words or {}).get(column)
            if known is None:
                value = number(text, f"{line.place}, column {column!r}:")
                values.append((value - self.mean[column]) / self.std[column])
            elif text in known:
                values += [float(text == word) for word in known]
            else:
                raise ValueError(f"{line.place}, column {column!r}: {text!r}, expected one of {', '.join(known)}")
        return torch.tensor(values)

    def decode(self, outputs: Tensor) -> Tensor:
        """Numbers of the target, in its own units, of what the network says in regression."""
        return outputs * self.std[self.target] + self.mean[self.target]

    def _rows(self, lines: Sequence[Line]) -> Rows:
        features = torch.stack([self.encode(line) for line in lines])
        if self.task == "classification":
            place = {name: i for i, name in enumerate(self.names())}
            return Rows(features, torch.tensor([place[line.fields[self.target]] for line in lines]))
        numbers = torch.tensor([[self._number(line, self.target)] for line in lines])
        return Rows(features, (numbers - self.mean[self.target]) / self.std[self.target])

    def _number(self, line: Line, column: str) -> float:
        return number(line.fields[column], f"{line.place}, column {column!r}:")

    def _settle_columns(self, header: Sequence[str]) -> None:
        if len(header) < 2:
            raise ValueError(f"the columns {', '.join(header) or 'nothing'}, expected two at least")
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise ValueError(f"the column {twice[0]!r} twice, expected names that differ")
        self.target = header[-1] if self.target is None else self.target
        self.columns = [name for name in header if name != self.target] if self.columns is None else self.columns
        for name in (self.target, *self.columns):
            if name not in header:
                option = "--data.target" if name == self.target else "--data.columns"
                raise ValueError(f"no column {name!r}, but {', '.join(header)}; try {option}")
        if self.target in self.columns:
            raise ValueError(f"the target {self.target!r} among the features, expected others; try --data.columns")

    def _settle_words(self, lines: Sequence[Line]) -> None:
        if self.words is not None:
            return
        self.words = {}
        for column in self.columns or ():
            texts = {line.fields[column] for line in lines}
            if any(_is_number(text) for text in texts) or "" in texts:
                continue  # a field that is no number will be named by its line
            if len(texts) > MOST:
                raise ValueError(
                    f"the column {column!r} has {len(texts)} different words, expected numbers, or {MOST} words at "
                    "most; try --data.columns without it"
                )
            self.words[column] = sorted(texts)

    def _settle_labels(self, lines: Sequence[Line]) -> list[list[int]]:
        """The numbers of the lines of every class; of all, in regression."""
        if self.task == "regression":
            return [list(range(len(lines)))]
        texts = [line.fields[self.target] for line in lines]
        found = sorted(set(texts), key=lambda text: (0, float(text), "") if _is_number(text) else (1, 0.0, text))
        if "" in found:
            raise ValueError(f"{lines[texts.index('')].place}, column {self.target!r}: nothing, expected a class")
        if self.labels is None and not 1 < len(found) <= MOST:
            other = "" if len(found) == 1 else "; for numbers try --config table-regression"
            raise ValueError(
                f"the target {self.target!r} has {len(found)} different values, expected 2 to {MOST} classes{other}"
            )
        self.labels = self.labels or found
        strange = [text for text in found if text not in self.labels]
        if strange:
            raise ValueError(
                f"{lines[texts.index(strange[0])].place}, column {self.target!r}: class {strange[0]!r}, expected one "
                f"of those that were trained, {', '.join(self.labels)}"
            )
        return [[i for i, text in enumerate(texts) if text == name] for name in found]

    def _settle_scale(self, train: Sequence[Line]) -> None:
        if self.mean is not None and self.std is not None:
            return
        numeric = [name for name in self.columns or () if name not in (self.words or {})]
        numeric += [self.target] if self.task == "regression" else []
        columns = {name: torch.tensor([self._number(line, name) for line in train]).double() for name in numeric}
        self.mean = {name: _short(values.mean()) for name, values in columns.items()}
        deviation = {name: _short(values.std(correction=0)) for name, values in columns.items()}
        self.std = {name: value or 1.0 for name, value in deviation.items()}  # a constant column says nothing


def _divided(groups: Sequence[list[int]], validation: float, test: float, seed: int) -> list[list[int]]:
    """Numbers of the lines that train, validate and test, out of every group."""
    parts: list[list[int]] = [[], [], []]
    for i, group in enumerate(groups):
        tested, held = (max(1, round(share * len(group))) for share in (test, validation))
        if len(group) - tested - held < 1:
            raise ValueError(f"{len(group)} lines of a class, expected 3 at least, to train, validate and test")
        order = [group[j] for j in permutation(len(group), i).tolist()]
        rest = [order[tested:][j] for j in permutation(len(group) - tested, seed + i).tolist()]
        for part, chosen in zip(parts, (rest[held:], rest[:held], order[:tested]), strict=True):
            part += chosen
    return parts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: Tensor) -> float:
    """To six digits: it is written into configurations."""
    return float(f"{float(value):.6g}")

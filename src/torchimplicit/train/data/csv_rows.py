"""The lines of a CSV file, with their numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from torchimplicit.files import read_bytes

SEPARATORS = ",;\t"


class Line(NamedTuple):
    """One line.

    Attributes:
        place: "line 7", as an editor counts.
        fields: by the names of their columns.
    """

    place: str
    fields: dict[str, str]


def header_of(path: Path) -> list[str]:
    """The names of the columns, which are the first line."""
    return list(_reader(path).fieldnames or ())


def lines_of(path: Path) -> Iterator[Line]:
    """Line after line; one with more or fewer fields than the first is a `ValueError`.

    Fields are parted by commas, semicolons or tabs, whichever the first line has most of.
    """
    reader = _reader(path)
    expected = len(reader.fieldnames or ())
    for fields in reader:
        place = f"line {reader.line_num}"
        if None in fields or None in fields.values():  # such as a decimal comma, whose digits would be lost
            count = sum(value is not None for value in fields.values())
            count += len(fields[None]) - 1 if None in fields else 0
            raise ValueError(f"{place}: {count} fields, expected {expected}")
        yield Line(place, fields)


def number(text: str, what: str) -> float:
    """A finite number; anything else is a `ValueError` that says of what."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise ValueError(f"{what} {text!r}, expected a finite number; leave out the line of what was not observed")
    return value


def _reader(path: Path) -> csv.DictReader:
    text = read_bytes(path).decode("utf-8-sig")
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    return csv.DictReader(StringIO(text, newline=""), skipinitialspace=True, delimiter=separator)

"""What a mutant is."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One wrong line.

    Attributes:
        file: below `src/torchimplicit`.
        why: what is wrong with it, in words.
        old: text that is in the file once.
        new: what to put in its place.
        tests: arguments of pytest.
    """

    file: str
    why: str
    old: str
    new: str
    tests: str

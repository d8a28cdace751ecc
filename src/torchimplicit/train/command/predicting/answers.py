"""What a model says of a sample, and how the solves behind it went."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torchimplicit.core.outcome import Status
from torchimplicit.core.status import Report

UNREADABLE, EXPLICIT = "unreadable", "nothing to solve"


class Verdict(NamedTuple):
    """How the solves of one sample went; the worst of several.

    Attributes:
        word: "converged", how else a solve ended, "nothing to solve" where the network has no solves, "unreadable".
        residual: the largest, RMS; None where nothing was solved.
        steps: the most.
        note: what else there is to say.
    """

    word: str
    residual: float | None = None
    steps: int | None = None
    note: str = ""

    @property
    def good(self) -> bool:
        """Nothing went wrong."""
        return self.word in (Status.CONVERGED.name.lower(), EXPLICIT)

    def fields(self) -> dict[str, str]:
        """As columns of a table."""
        residual = "" if self.residual is None else f"{self.residual:.1e}"
        steps = "" if self.steps is None else str(self.steps)
        return {"verdict": self.word, "residual": residual, "steps": steps, "note": self.note}

    def __str__(self) -> str:
        """In a few words."""
        return self.word if self.residual is None else f"{self.word}, residual {self.residual:.1e}"


@dataclass(frozen=True)
class Answer:
    """What is said of one sample.

    Attributes:
        place: where it comes from, by the names of columns.
        values: what was predicted, likewise; empty where nothing was.
        verdict: how the solves went.
    """

    place: dict[str, str]
    values: dict[str, str] = field(default_factory=dict)
    verdict: Verdict = Verdict(EXPLICIT)

    def fields(self) -> dict[str, str]:
        """As columns of a table."""
        return self.place | self.values | self.verdict.fields()

    def __str__(self) -> str:
        """Place and verdict."""
        return f"{' '.join(self.place.values())} ({self.verdict})"


def unreadable(place: dict[str, str], error: Exception) -> Answer:
    """An answer for what could not be read."""
    return Answer(place, {}, Verdict(UNREADABLE, note=str(error)))


def verdicts(module: Any, count: int) -> list[Verdict]:
    """How the last solves of all layers of a module went, for every sample of its batch."""
    reports: Sequence[Report] = module.reports()
    if not reports:
        return [Verdict(EXPLICIT)] * count
    return [worst([_verdict(report, i) for report in reports]) for i in range(count)]


def worst(several: Sequence[Verdict]) -> Verdict:
    """One for all: how the first that failed ended, the largest residual, the most steps."""
    word = next((each.word for each in several if not each.good), several[0].word)
    residuals = [each.residual for each in several if each.residual is not None]
    steps = [each.steps for each in several if each.steps is not None]
    return Verdict(word, max(residuals, default=None), max(steps, default=None))


def _verdict(report: Report, sample: int) -> Verdict:
    status = Status(int(report.status[sample]))
    return Verdict(status.name.lower(), float(report.residual[sample]), int(report.steps[sample]))


def as_csv(answers: Sequence[Answer]) -> str:
    """A table with a line for every answer."""
    columns: dict[str, None] = {}
    for part in ("place", "values"):
        for answer in answers:
            columns |= dict.fromkeys(getattr(answer, part))
    columns |= dict.fromkeys(Verdict("").fields())
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(answer.fields() for answer in answers)
    return text.getvalue()


def files_of(words: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """The files that are named, and in place of a folder those below it that end alike; each once."""
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        inside = sorted(each for each in path.rglob("*") if each.is_file() and each.suffix.lower() in suffixes)
        inside = [each for each in inside if not each.name.startswith(".")]
        found |= dict.fromkeys(inside if path.is_dir() else [path])
    return list(found)

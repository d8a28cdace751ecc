"""From files to answers, on the screen or in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from torchimplicit.files import DataError
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.train.checkpoint import load
from torchimplicit.train.command.predicting import pictures, tables, texts
from torchimplicit.train.command.predicting.answers import UNREADABLE, Answer, as_csv, files_of
from torchimplicit.train.data import FeatureTable, ImageData, Nuclei, Text
from torchimplicit.train.data.pictures import SUFFIXES
from torchimplicit.train.errors import UnconvergedError, UsageError
from torchimplicit.train.modules import Classifier, LanguageModel, Regressor, Segmenter

SHOWN = 40  # answers on the screen


@dataclass(frozen=True)
class Question:
    """What the command was asked.

    Args:
        checkpoint: of the model.
        files: names of files and folders.
        out: a CSV file, or a folder for masks; None for the screen.
        trust: modules of the user's own whose classes the checkpoint may build.
        count: tokens to say after a text.
        temperature: of these; below 1 the likelier ones are preferred.
        seed: of these.
    """

    checkpoint: str
    files: Sequence[str]
    out: Path | None = None
    trust: Sequence[str] = ()
    count: int = 100
    temperature: float = 1.0
    seed: int = 0


@torch.no_grad()
def predict(asked: Question) -> list[Answer]:
    """Answers for all files, written where they shall be.

    Raises:
        UsageError: the model is not of a kind that reads files, or an impossible option.
        CheckpointError: the checkpoint is absent, or no such thing.
        DataError: after everything was written, where something could not be read.
        UnconvergedError: likewise, where something did not converge.
    """
    module, data = load(asked.checkpoint, asked.trust)
    for layer in module.modules():
        if isinstance(layer, ImplicitLayer):
            layer.on_failure = "ignore"  # every answer says it for itself
    answers = _answers(module, data, asked)
    _tell(answers, asked.out, folder=isinstance(module, Segmenter))
    _require_good(answers)
    return answers


def _answers(module: Any, data: Any, asked: Question) -> list[Answer]:
    if isinstance(module, Classifier) and isinstance(data, ImageData):
        return pictures.classified(module, data, _files(asked, SUFFIXES))
    if isinstance(module, Segmenter) and isinstance(data, Nuclei):
        return pictures.segmented(module, data, _files(asked, SUFFIXES), asked.out)
    if isinstance(module, (Classifier, Regressor)) and isinstance(data, FeatureTable):
        return tables.predicted(module, data, _files(asked, (".csv", ".tsv")))
    if isinstance(module, LanguageModel) and isinstance(data, Text):
        if not 0 < asked.temperature < float("inf") or asked.count < 0:
            raise UsageError("predict: expected a finite --temperature > 0, and --count >= 0.")
        return texts.read(module, data, _files(asked, (".txt",)), asked.count, asked.temperature, asked.seed)
    raise UsageError(
        f"predict: {type(module).__name__} of recipe {getattr(module, 'recipe', 'unknown')!r} reads no files, expected "
        "a model of pictures, masks, tables or texts. Try torchimplicit.train.load(path) in Python."
    )


def _files(asked: Question, suffixes: Sequence[str]) -> list[Path]:
    found = files_of(asked.files, suffixes)
    if not found:
        raise UsageError(f"predict: {', '.join(asked.files)}: no files that end in {', '.join(suffixes)}.")
    return found


def _tell(answers: Sequence[Answer], out: Path | None, folder: bool) -> None:
    """A file, or a table on the screen; and how many there are."""
    if out is None:
        columns = list(dict.fromkeys(name for each in answers for name in each.fields() if name != "note"))
        table = Table(*columns, box=None, header_style="bold", pad_edge=False, padding=(0, 1))
        for answer in answers[:SHOWN]:
            table.add_row(*(answer.fields().get(name, "") for name in columns))
        Console().print(table)
        if len(answers) > SHOWN:
            print(f"... {len(answers) - SHOWN} more; try --out predictions.csv")
        return
    path = out / "predictions.csv" if folder else out
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_csv(answers))
    good = sum(each.verdict.good for each in answers)
    print(f"predictions: {path} ({len(answers)} answers, {good} of them good)")


def _require_good(answers: Sequence[Answer]) -> None:
    """Raises if something went wrong, and says how."""
    lost = [each for each in answers if each.verdict.word == UNREADABLE]
    open_ = [each for each in answers if not each.verdict.good and each.verdict.word != UNREADABLE]
    more = "" if len(lost) < 2 else f" And {len(lost) - 1} more."
    failed = f"{len(open_)} of {len(answers)} answers did not converge: {', '.join(map(str, open_[:3]))}"
    failed += f"{', ...' if len(open_) > 3 else ''}. They are as far as their solves came." if open_ else ""
    if lost:
        raise DataError(f"{lost[0].verdict.note}{more}{f' Besides, {failed}' if open_ else ''}")
    if open_:
        raise UnconvergedError(f"predict: {failed}")

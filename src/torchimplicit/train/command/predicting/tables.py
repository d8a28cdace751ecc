"""What a model says of the lines of tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchimplicit.files import DataError, reading
from torchimplicit.train.command.predicting.answers import Answer, unreadable, verdicts
from torchimplicit.train.data.csv_rows import lines_of

HINT = "Expected a CSV file with the columns of the features."
BATCH = 256


def predicted(module: Any, data: Any, paths: Sequence[Path]) -> list[Answer]:
    """Class and probability, or the number, of every line of every file; the target's column is not looked at."""
    answers: list[Answer] = []
    for path in paths:
        try:
            with reading("predict", path, HINT):
                lines = list(lines_of(path))
                if not lines:
                    raise ValueError("no lines below the first")
        except DataError as error:
            answers.append(unreadable({"file": str(path), "line": ""}, error))
            continue
        rows: list[tuple[int, Tensor]] = []
        for line in lines:
            place = {"file": str(path), "line": line.place.removeprefix("line ")}
            try:
                rows.append((len(answers), data.encode(line)))
                answers.append(Answer(place))
            except ValueError as error:
                answers.append(unreadable(place, ValueError(f"predict: {path}, {error}")))
        for start in range(0, len(rows), BATCH):
            _answer(module, data, rows[start : start + BATCH], answers)
    return answers


def _answer(module: Any, data: Any, rows: Sequence[tuple[int, Tensor]], answers: list[Answer]) -> None:
    """Fills in what is said of some lines."""
    outputs = module(torch.stack([features for _, features in rows]))
    found = verdicts(module, len(rows))
    for (number, _), output, verdict in zip(rows, outputs, found, strict=True):
        if data.task == "regression":
            values = {data.target: f"{float(data.decode(output)[0]):.6g}"}
        else:
            best, label = output.softmax(0).max(0)
            values = {data.target: data.names()[int(label)], "probability": f"{float(best):.4f}"}
        answers[number] = Answer(answers[number].place, values, verdict)

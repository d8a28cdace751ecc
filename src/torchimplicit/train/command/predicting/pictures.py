"""What a model says of pictures: their class, or a class for every pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchimplicit.files import DataError, reading
from torchimplicit.imaging import write_png
from torchimplicit.train.command.predicting.answers import Answer, unreadable, verdicts
from torchimplicit.train.data.pictures import SUFFIXES, PictureFormat
from torchimplicit.train.errors import UsageError

HINT = f"Expected a picture ({', '.join(SUFFIXES)})."
BATCH = 32


def classified(module: Any, data: Any, paths: Sequence[Path]) -> list[Answer]:
    """The class of every picture and its probability, in the order of the files."""
    found: dict[Path, Answer] = {}
    names = data.names()
    for places, batch in _batches(data.format(), paths, found):
        best, number = module(batch).softmax(1).max(1)
        for path, p, n, verdict in zip(places, best, number, verdicts(module, len(places)), strict=True):
            found[path] = Answer(_place(path), {"class": names[int(n)], "probability": f"{float(p):.4f}"}, verdict)
    return [found[path] for path in paths]


def segmented(module: Any, data: Any, paths: Sequence[Path], out: Path | None) -> list[Answer]:
    """The mask of every picture, of its own size, as PNG in a folder: black is class 0, white the last.

    Raises:
        UsageError: there is no folder, or two masks would have the same name.
    """
    if out is None or (out.suffix and not out.is_dir()):
        raise UsageError(f"predict: --out {out or 'missing'}: expected a folder for the masks. Try --out masks/.")
    names = Counter(path.stem for path in paths)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UsageError(f"predict: two files would have the mask {twice[0]}.png. Try one folder after the other.")
    out.mkdir(parents=True, exist_ok=True)
    found: dict[Path, Answer] = {}
    for places, batch in _batches(data.format(), paths, found):
        masks = module(batch).argmax(1)
        for path, mask, verdict in zip(places, masks, verdicts(module, len(places)), strict=True):
            target = out / f"{path.stem}.png"
            write_png(target, mask.float() / max(module.classes - 1, 1))
            share = float((mask > 0).float().mean())
            found[path] = Answer(_place(path), {"mask": str(target), "foreground": f"{share:.4f}"}, verdict)
    return [found[path] for path in paths]


def _batches(
    format: PictureFormat, paths: Sequence[Path], found: dict[Path, Answer]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Pictures of one size together; what cannot be read is found at once."""
    places: list[Path] = []
    batch: list[Tensor] = []
    for path in paths:
        try:
            with reading("predict", path, HINT):
                picture = format.read(path)
        except DataError as error:
            found[path] = unreadable(_place(path), error)
            continue
        if batch and (batch[0].shape != picture.shape or len(batch) == BATCH):
            yield places, torch.stack(batch)
            places, batch = [], []
        places.append(path)
        batch.append(picture)
    if batch:
        yield places, torch.stack(batch)


def _place(path: Path) -> dict[str, str]:
    return {"file": str(path)}

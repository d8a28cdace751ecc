"""Where training runs lie: `runs/<recipe>/version_<n>/checkpoints/{best,last}.ckpt`, TensorBoard logs beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torchimplicit.train.checkpoint import CheckpointError


def find(checkpoint: str, folder: Path) -> Path:
    """The path of a checkpoint, where 'last' and 'best' mean those of the latest run in a folder.

    Args:
        checkpoint: a path, 'last' or 'best'.
        folder: with the runs of one recipe.

    Raises:
        CheckpointError: the latest run has none; an earlier one is not taken in its place.
    """
    if checkpoint not in ("last", "best"):
        return Path(checkpoint)
    versions = sorted((path for path in folder.glob("version_*") if path.is_dir()), key=_number)
    found = [path for path in (version / "checkpoints" / f"{checkpoint}.ckpt" for version in versions) if path.exists()]
    if checkpoint == "best" and versions and not found and (versions[-1] / "checkpoints" / "last.ckpt").exists():
        raise CheckpointError(
            f"--ckpt_path best: none in {versions[-1]} yet, which has never been validated. Try --ckpt_path last, or "
            "go on training with torchimplicit fit --ckpt_path last."
        )
    if not found:
        raise CheckpointError(
            f"--ckpt_path {checkpoint}: found none in {folder}/version_*/checkpoints. Try torchimplicit fit without "
            "--ckpt_path first, or give the path of a .ckpt file."
        )
    if versions[-1] not in found[-1].parents:
        raise CheckpointError(
            f"--ckpt_path {checkpoint}: the latest run, {versions[-1]}, has none yet. Try one of an earlier run by its "
            f"path: {', '.join(map(str, reversed(found[-3:])))}."
        )
    return found[-1]


@contextmanager
def without_trace(folder: Path, begun: Callable[[], bool]) -> Iterator[None]:
    """Takes away what a start leaves in the folder of a run, if training does not begin.

    That is the log of this process, new folders that are empty then, and the folder of the run with all that is in it
    where it is new. Whatever else is there stays. A log in CSV, which would be written anew, is put aside.

    Args:
        folder: of the run, `runs/<recipe>/version_<n>`; the two above it go too where they are new and empty.
        begun: says whether training has begun.
    """
    mine = f"events.out.tfevents.*.{os.getpid()}.*"
    before = {*folder.glob(mine)}
    new = [place for place in (folder, *folder.parents[:2]) if not place.exists()]
    log = folder / "metrics.csv"
    aside = log.with_stem(f"metrics-{len([*folder.glob('metrics-*.csv')]) + 1:03d}")
    if log.exists():
        log.rename(aside)
    try:
        yield
    finally:
        if not begun():
            for path in {*folder.glob(mine)} - before:
                path.unlink()
            if folder in new:
                shutil.rmtree(folder, ignore_errors=True)
            for place in new:
                if place.is_dir() and not any(place.iterdir()):
                    place.rmdir()
            if aside.exists():
                aside.replace(log)


def _number(version: Path) -> int:
    number = version.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def of_checkpoint(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to: its own, or the one above `checkpoints`."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder

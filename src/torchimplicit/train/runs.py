"""Where training runs lie: `runs/<recipe>/version_<n>/checkpoints/{best,last}.ckpt`, TensorBoard logs beside them."""

from __future__ import annotations

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


def remove_unbegun(folder: Path) -> None:
    """Removes the folder of a run that never trained: one that holds the empty files of a log and nothing else."""
    if not folder.is_dir():
        return
    files = list(folder.iterdir())
    if all(file.name.startswith("events.out.tfevents") for file in files):
        for file in files:
            file.unlink()
        folder.rmdir()


def _number(version: Path) -> int:
    number = version.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def of_checkpoint(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to: its own, or the one above `checkpoints`."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder

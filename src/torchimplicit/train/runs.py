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
        CheckpointError: there is none.
    """
    if checkpoint not in ("last", "best"):
        return Path(checkpoint)
    found = sorted(folder.glob(f"version_*/checkpoints/{checkpoint}.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(
            f"--ckpt_path {checkpoint}: found none in {folder}/version_*/checkpoints. Try torchimplicit fit without "
            "--ckpt_path first, or give the path of a .ckpt file."
        )
    return found[-1]


def of_checkpoint(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to: its own, or the one above `checkpoints`."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder

"""Checkpoints from the middle of a step of the optimiser."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def whole_steps(loop: dict[str, Any], trainer: Trainer) -> None:
    """Sets what a checkpoint says of batches done back to the optimiser's last whole step.

    A run may be interrupted in the midst of a batch, or between two batches whose gradients are accumulated. The
    weights are then those after the last step, and the gradients since are lost: the batches since must be taken again.

    Args:
        loop: the checkpoint's entry of the fit loop, changed in place.
        trainer: whose loop it is.
    """
    progress = loop["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    done = int(current["processed"])  # the optimiser has stepped, though hooks may not all have run
    if done < trainer.num_training_batches:
        done -= done % trainer.accumulate_grad_batches
    if done == current["ready"]:
        return
    for name in ("ready", "started", "processed", "completed"):
        total[name] -= current[name] - done
        current[name] = done
    progress["is_last_batch"] = False

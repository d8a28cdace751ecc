"""`torchimplicit demo`: train, test, draw, and say how the solves went."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import torch

from torchimplicit import diagnose
from torchimplicit.train.checkpoint import load
from torchimplicit.train.command.curves import plot_curves, read_curves
from torchimplicit.train.command.trainer_cli import RecipeCLI

NEXT = """
Next:
  {command} report {checkpoint}
  {board} --logdir {logs}
  {command} fit --config digits --model.network.solver Newton
  {command} recipes
"""


def run(epochs: int | None = None) -> float:
    """Trains the recipe `digits` and shows what came of it; returns the accuracy on the test split."""
    start = time.perf_counter()
    print("Training an equilibrium network on 1,257 handwritten digits: the layer's output is the fixed point")
    print("z = tanh(W z + x), found by Anderson acceleration and differentiated by the implicit function theorem.")
    print("In the bar: the mean steps of a solve, and the largest residual that it left.\n")
    words = ["fit", "--config", "digits", *(("--trainer.max_epochs", str(epochs)) if epochs else ())]
    cli = RecipeCLI(words)
    folder = Path(str(cli.trainer.log_dir))
    best = folder / "checkpoints" / "best.ckpt"
    module, data = load(best)
    images, labels = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))  # type: ignore[union-attr]
    with torch.no_grad():
        accuracy = float((module(images).argmax(1) == labels).double().mean())
        x = module.network.encoder(images)  # type: ignore[union-attr,operator]
    picture, convergence = folder / "demo.png", diagnose.convergence(module.network.equilibrium, x)  # type: ignore
    plot_curves(read_curves(folder), f"digits: {accuracy:.1%} of the test split").savefig(picture, dpi=110)
    convergence.plot(folder / "convergence.png")
    print(f"\n{convergence}\n")
    print(f"test accuracy: {accuracy:.1%} of {len(labels)} digits, after {time.perf_counter() - start:.0f} seconds")
    print(f"pictures: {picture}, {folder / 'convergence.png'}")
    print(
        NEXT.format(
            command=_command("torchimplicit"), board=_command("tensorboard"), checkpoint=best, logs=folder.parent
        )
    )
    return accuracy


def _command(name: str) -> str:
    """How the user can call a command: by its name, or by its path where the environment is not active."""
    path = Path(sys.executable).parent / name
    return name if shutil.which(name) else os.path.relpath(path)

"""Training time of equilibrium models against explicit networks of equal parameters, adjoint by adjoint.

python benchmarks/training.py                     everything; rewrites benchmarks/TRAINING.md (under an hour)
python benchmarks/training.py --only mnist-conv   one recipe, writes nothing
python benchmarks/training.py --steps 5           optimiser steps of each training, writes nothing
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from measure import interleaved
from table import Table, write_page

from torchimplicit.train.cli import quiet
from torchimplicit.train.modules import EquilibriumModule
from torchimplicit.train.trainer_cli import RecipeCLI


@dataclass(frozen=True)
class Rivalry:
    """A recipe, and the explicit network that it is held against.

    Attributes:
        recipe: its name.
        explicit: the words that put the explicit network in.
        penalty: weight of the Jacobian penalty where it is on.
        metric: what validation measures.
        steps: optimiser steps of each training.
        words: further words for all.
    """

    recipe: str
    explicit: tuple[str, ...]
    penalty: float
    metric: str
    steps: int
    words: tuple[str, ...] = ()


RIVALRIES = (
    Rivalry("mnist-conv", ("--model.network", "ExplicitConvolutional"), 0.1, "accuracy", 430),
    Rivalry("text", ("--model.network", "ExplicitTransformer"), 0.1, "perplexity", 200),
)
ADJOINTS = {
    "Implicit": ("--model.network.adjoint", "Implicit"),
    "Phantom": ("--model.network.adjoint", "Phantom"),
    "Shine": ("--model.network.solver", "Broyden", "--model.network.adjoint", "Shine"),
}
OPTIONS = (
    "--trainer.enable_progress_bar false --trainer.logger false --trainer.callbacks null --trainer.accelerator cpu"
)


def contestants(rivalry: Rivalry) -> dict[str, list[str]]:
    """The words of each training, by its name."""
    penalty = ["--model.jacobian_penalty", str(rivalry.penalty)]
    found = {"explicit": list(rivalry.explicit)}
    for name, words in ADJOINTS.items():
        found[name] = list(words)
        found[f"{name}, penalty"] = [*words, *penalty]
    return found


def trained(rivalry: Rivalry, words: Sequence[str], steps: int) -> tuple[EquilibriumModule, Any, dict[str, float]]:
    """Trains through the command; module, data, and what the last training steps and the validation measured."""
    schedule = ["--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"]
    with quiet():
        cli = RecipeCLI(["fit", "--config", rivalry.recipe, *schedule, *OPTIONS.split(), *words, *rivalry.words])
        cli.trainer.limit_val_batches = 1.0
        figures = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
        figures |= cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    return cli.model, cli.datamodule, figures


def step_times(modules: dict[str, tuple[EquilibriumModule, Any]], seconds: float) -> dict[str, float]:
    """Milliseconds of a training step of each, interleaved, at the weights that training left."""

    def stepper(module: EquilibriumModule, data: Any):
        batches = cycle(list(islice(iter(data.train_dataloader()), 4)))
        optimizer = torch.optim.AdamW(module.parameters(), 0.0)

        def step() -> None:
            optimizer.zero_grad()
            module.training_step(next(batches), 0).backward()
            optimizer.step()

        module.train()
        return step

    runs = {name: stepper(*pair) for name, pair in modules.items()}
    return interleaved(runs, seconds, clock=time.thread_time)


def compare(rivalry: Rivalry, steps: int | None = None, seconds: float = 60) -> Table:
    """Every adjoint, with the penalty and without, against the explicit network."""
    steps = steps or rivalry.steps
    results = {name: trained(rivalry, words, steps) for name, words in contestants(rivalry).items()}
    times = step_times({name: (module, data) for name, (module, data, _) in results.items()}, seconds)
    table = Table(
        f"Training `{rivalry.recipe}`",
        f"Each trained for {steps} steps of the optimiser, then validated. Seconds an epoch: the median CPU time of a "
        "training step, measured interleaved at the trained weights on one thread, times the steps of an epoch.",
        ["how", "parameters", "s an epoch", "ratio", "forward steps", "backward steps", rivalry.metric],
    )
    for name, (module, data, figures) in results.items():
        count = sum(p.numel() for p in module.network.parameters())
        epoch = times[name] / 1e3 * len(data.train_dataloader())
        solves = [figures.get(f"train/{way}_steps") for way in ("forward", "backward")]
        table.add(
            name,
            f"{count:,}",
            f"{epoch:.0f}",
            f"{times[name] / times['explicit']:.2f}",
            *("-" if value is None else f"{value:.1f}" for value in solves),
            f"{figures[f'val/{rivalry.metric}']:.4g}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[each.recipe for each in RIVALRIES])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=60, help="of the interleaved timing (default: 60)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("TRAINING.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [each for each in RIVALRIES if not options.only or each.recipe in options.only]
    with tempfile.TemporaryDirectory():
        tables = [compare(each, options.steps, options.seconds) for each in chosen]
    if not (options.only or options.steps):
        write_page(options.output, tables, 1, "Rewritten by `benchmarks/training.py`.")
        print(f"wrote {options.output}")
    return tables


if __name__ == "__main__":
    main()

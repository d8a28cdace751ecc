"""Training time of equilibrium models against explicit networks of equal parameters, adjoint by adjoint.

python benchmarks/training.py                     everything; rewrites benchmarks/TRAINING.md (under an hour)
python benchmarks/training.py --only mnist-conv   one recipe, writes nothing
python benchmarks/training.py --steps 5           optimiser steps of each training, writes nothing
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
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
    """

    recipe: str
    explicit: str
    penalty: float
    metric: str
    steps: int


NETWORK = "--model.network"
RIVALRIES = (
    Rivalry("mnist-conv", f"{NETWORK} ResidualNetwork {NETWORK}.channels 32 {NETWORK}.blocks 2", 3.0, "accuracy", 100),
    Rivalry(
        "text",
        f"{NETWORK} TransformerNetwork {NETWORK}.vocabulary 65 {NETWORK}.width 44 {NETWORK}.heads 2 "
        f"{NETWORK}.hidden 160 {NETWORK}.layers 12 {NETWORK}.length 256",
        1.0,
        "perplexity",
        60,
    ),
)
ADJOINTS = {
    "Implicit": "",
    "Phantom": f"{NETWORK}.adjoint Phantom",
    "Shine": f"{NETWORK}.solver Broyden {NETWORK}.solver.rtol 1e-2 {NETWORK}.adjoint Shine",
}
OPTIONS = (
    "--trainer.enable_progress_bar false --trainer.logger false --trainer.callbacks null --trainer.accelerator cpu "
    "--trainer.max_epochs -1 --trainer.limit_val_batches 0 --trainer.log_every_n_steps 10"
)


def contestants(rivalry: Rivalry) -> dict[str, str]:
    """The words of each training, by its name."""
    found = {"explicit": f"{rivalry.explicit} --model.jacobian_penalty 0"}
    for name, words in ADJOINTS.items():
        found[name] = f"{words} --model.jacobian_penalty 0"
        found[f"{name}, penalty"] = f"{words} --model.jacobian_penalty {rivalry.penalty}"
    return found


def trained(rivalry: Rivalry, words: str, steps: int) -> tuple[EquilibriumModule, Any, dict[str, float]]:
    """Trains through the command; module, data, and what the last training steps and the validation measured."""
    every = f"fit --config {rivalry.recipe} --trainer.max_steps {steps} {OPTIONS} {words}"
    with quiet():
        cli = RecipeCLI(every.split())
        cli.trainer.limit_val_batches = 1.0
        figures = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
        figures |= cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    return cli.model, cli.datamodule, figures


def step_times(modules: dict[str, tuple[EquilibriumModule, Any]], seconds: float) -> dict[str, float]:
    """Milliseconds of a training step of each, interleaved, at the weights that training left."""

    def stepper(module: EquilibriumModule, data: Any) -> Callable[[], None]:
        batches = cycle(list(islice(iter(data.train_dataloader()), 4)))
        optimizer = torch.optim.AdamW(module.parameters(), 0.0)
        penalty = module.jacobian_penalty
        module.train()

        def step() -> None:  # as many as the penalty has a period
            for due in [True] + [False] * (module.penalty_every - 1):
                module.jacobian_penalty = penalty if due else 0.0
                optimizer.zero_grad()
                with module.trainer.precision_plugin.train_step_context():
                    loss = module.training_step(next(batches), 0)
                loss.backward()
                optimizer.step()

        return step

    for module, _ in modules.values():
        module.on_validation_start()  # no curriculum
    runs = {name: stepper(*pair) for name, pair in modules.items()}
    times = interleaved(runs, seconds, clock=time.thread_time)
    return {name: time / modules[name][0].penalty_every for name, time in times.items()}


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
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().with_name("TRAINING.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [each for each in RIVALRIES if not options.only or each.recipe in options.only]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # where Lightning writes its files
        tables = [compare(each, options.steps, options.seconds) for each in chosen]
    if not (options.only or options.steps):
        write_page(options.output, tables, 1, "Rewritten by `benchmarks/training.py`.")
        print(f"wrote {options.output}")
    return tables


if __name__ == "__main__":
    main()

"""Training time of equilibrium models against explicit networks of equal parameters, adjoint by adjoint.

python -m benchmarks.training                     everything; rewrites benchmarks/TRAINING.md (under an hour)
python -m benchmarks.training --only mnist-conv   one recipe, writes nothing
python -m benchmarks.training --steps 5           optimiser steps of each training, writes nothing
python -m benchmarks.training --whole 1           whole trainings of mnist-conv, one epoch each; writes nothing
python -m benchmarks.training --profile           where a training step of mnist-conv goes; writes nothing
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

from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table, write_page
from benchmarks.training.shares import FORWARD, KINDS, shares
from torchimplicit.train.command.silence import quiet
from torchimplicit.train.command.trainer_cli import RecipeCLI
from torchimplicit.train.modules import EquilibriumModule


@dataclass(frozen=True)
class Rivalry:
    """A recipe, and the explicit network that it is held against.

    Attributes:
        recipe: its name.
        explicit: the words that put the explicit network in.
        penalty: weight of the Jacobian penalty where it is on.
        metric: what validation measures.
        steps: optimiser steps of each training.
        base: words of every equilibrium.
    """

    recipe: str
    explicit: str
    penalty: float
    metric: str
    steps: int
    base: str = ""


NETWORK = "--model.network"
# The cell of the tutorial, which contracts only where a penalty keeps it there.
TUTORIAL = (
    f"{NETWORK}.cell residual {NETWORK}.inner 64 {NETWORK}.solver Anderson {NETWORK}.solver.window 5 "
    f"{NETWORK}.solver.rtol 1e-2 {NETWORK}.solver.max_steps 40 {NETWORK}.adjoint.linear_solver GMRES "
    f"{NETWORK}.adjoint.linear_solver.rtol 0.1 --model.penalty_every 2 --model.learning_rate 1e-3"
)
RIVALRIES = (
    Rivalry(
        "mnist-conv",
        f"{NETWORK} ResidualNetwork {NETWORK}.channels 32 {NETWORK}.blocks 2 --model.learning_rate 1e-3",
        3.0,
        "accuracy",
        100,
        TUTORIAL,
    ),
    Rivalry(
        "text",
        f"{NETWORK} TransformerNetwork {NETWORK}.vocabulary 65 {NETWORK}.width 44 {NETWORK}.heads 2 "
        f"{NETWORK}.hidden 160 {NETWORK}.layers 12 {NETWORK}.length 256",
        1.0,
        "perplexity",
        60,
    ),
)
NARROW = f"{NETWORK}.inner 32 {NETWORK}.adjoint Phantom --model.jacobian_penalty 10 --model.penalty_every 4"
ROUGH = f"{NETWORK}.solver.rtol 0.1 {NETWORK}.adjoint Phantom --model.jacobian_penalty 3 --model.penalty_every 8"
LOOSE = "--model.curriculum.loose_rtol 0.1 --model.curriculum.tighten_steps 1000000000"  # while it trains
UNROLLED = f"{LOOSE} --model.curriculum.unrolled_steps 380 --model.curriculum.depth"  # of the 430 steps of an epoch
RESIDUAL = f"--model.jacobian_penalty 0 --model.learning_rate 1e-3 {NETWORK} ResidualNetwork {NETWORK}.channels"
WHOLE = {  # of mnist-conv, an epoch each: explicit networks from large to small, the quickest equilibria we know
    "explicit, 32 channels, 2 blocks": f"{RESIDUAL} 32 {NETWORK}.blocks 2",
    "explicit, 32 channels, 1 block": f"{RESIDUAL} 32 {NETWORK}.blocks 1",
    "explicit, 24 channels, 1 block": f"{RESIDUAL} 24 {NETWORK}.blocks 1",
    "explicit, 16 channels, 1 block": f"{RESIDUAL} 16 {NETWORK}.blocks 1",
    "the recipe": "",
    "Phantom, 32 inner channels, rtol 0.1": f"{TUTORIAL} {NETWORK}.inner 32 {ROUGH}",
    "Phantom, 16 channels, 32 inner, rtol 0.1": f"{TUTORIAL} {NETWORK}.channels 16 {NETWORK}.inner 32 {ROUGH}",
    "Phantom, 32 inner channels, loose": f"{TUTORIAL} {NARROW} {LOOSE}",
    "the same, 380 steps unrolled thrice": f"{TUTORIAL} {NARROW} {UNROLLED} 3",
    "the same, 380 steps unrolled twice": f"{TUTORIAL} {NARROW} {UNROLLED} 2",
}
ADJOINTS = {
    "Implicit": "",
    "Phantom": f"{NETWORK}.adjoint Phantom",
    "Shine": f"{NETWORK}.solver Broyden {NETWORK}.solver.rtol 1e-2 {NETWORK}.adjoint Shine",
}
OPTIONS = (
    "--trainer.enable_progress_bar false --trainer.logger false --trainer.callbacks null --trainer.accelerator cpu "
    "--trainer.limit_val_batches 0 --trainer.log_every_n_steps 10"
)


class TimedCLI(RecipeCLI):
    """The command, which takes the processor time of its training.

    Attributes:
        seconds: of the whole training, without reading the data and without validation.
    """

    seconds: float
    _began: float

    def before_fit(self) -> None:
        """Starts the clock."""
        self._began = time.process_time()

    def after_fit(self) -> None:
        """Stops it."""
        self.seconds = time.process_time() - self._began
        super().after_fit()


def contestants(rivalry: Rivalry) -> dict[str, str]:
    """The words of each training, by its name."""
    found = {"explicit": f"{rivalry.explicit} --model.jacobian_penalty 0"}
    for name, words in ADJOINTS.items():
        found[name] = f"{rivalry.base} {words} --model.jacobian_penalty 0"
        found[f"{name}, penalty"] = f"{rivalry.base} {words} --model.jacobian_penalty {rivalry.penalty}"
    return found


def whole_contestants() -> dict[str, str]:
    """The words of each whole training of mnist-conv: those of equal accuracy, then the six, the dearest last."""
    six = {name: words for name, words in contestants(RIVALRIES[0]).items() if name != "explicit"}
    return WHOLE | dict(sorted(six.items(), key=lambda item: ("penalty" not in item[0], "Implicit" in item[0])))


def trained(recipe: str, words: str) -> tuple[EquilibriumModule, Any, dict[str, float]]:
    """Trains through the command; module, data, and what the last training steps and the validation measured."""
    with quiet():
        cli = TimedCLI(f"fit --config {recipe} {OPTIONS} {words}".split())
        cli.trainer.limit_val_batches = 1.0
        figures = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
        figures |= cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    return cli.model, cli.datamodule, figures | {"seconds": cli.seconds}


def stepper(module: EquilibriumModule, data: Any) -> Callable[[], None]:
    """Makes as many training steps as the penalty has a period, at the module's weights, which stay as they are."""
    batches = cycle(list(islice(iter(data.train_dataloader()), 4)))
    optimizer = torch.optim.AdamW(module.parameters(), 0.0)
    penalty = module.jacobian_penalty
    module.on_validation_start()  # no curriculum
    module.train()

    def step() -> None:
        for due in [True] + [False] * (module.penalty_every - 1):
            module.jacobian_penalty = penalty if due else 0.0
            optimizer.zero_grad()
            with module.trainer.precision_plugin.train_step_context():
                loss = module.training_step(next(batches), 0)
            loss.backward()
            optimizer.step()

    return step


def step_times(modules: dict[str, tuple[EquilibriumModule, Any]], seconds: float) -> dict[str, float]:
    """Milliseconds of a training step of each, interleaved, at the weights that training left."""
    runs = {name: stepper(*pair) for name, pair in modules.items()}
    times = interleaved(runs, seconds, clock=time.thread_time)
    return {name: time / modules[name][0].penalty_every for name, time in times.items()}


def compare(rivalry: Rivalry, steps: int | None = None, seconds: float = 60) -> Table:
    """Every adjoint, with the penalty and without, against the explicit network."""
    steps = steps or rivalry.steps
    limit = f"--trainer.max_epochs -1 --trainer.max_steps {steps}"
    results = {name: trained(rivalry.recipe, f"{limit} {words}") for name, words in contestants(rivalry).items()}
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


def whole(configurations: dict[str, str], epochs: int, limit: str = "") -> Table:
    """Whole trainings of mnist-conv, one after another, and what they have come to: to compare at equal accuracy."""
    table = Table(
        f"Whole trainings of `mnist-conv`, {epochs} {'epoch' if epochs == 1 else 'epochs'}",
        "Processor time of the training, all steps and penalties counted, on one thread; one run each, one seed, a "
        "warm-up of 50 steps. The solves are those of the validation, at rtol 1e-2 where no other is named.",
        ["how", "parameters", "s an epoch", "accuracy", "forward steps", "unconverged"],
    )
    for name, words in configurations.items():
        limits = f"--trainer.max_epochs {epochs} --model.warmup_steps 50 {limit}"
        module, _, figures = trained("mnist-conv", f"{limits} {words}")
        steps, unconverged = (figures.get(f"val/forward_{what}") for what in ("steps", "unconverged"))
        table.add(
            name,
            f"{sum(p.numel() for p in module.network.parameters()):,}",
            f"{figures['seconds'] / epochs:.1f}",
            f"{figures['val/accuracy']:.4f}",
            "-" if steps is None else f"{steps:.1f}",
            "-" if unconverged is None else f"{100 * unconverged:.2f} %",
        )
    return table


def step_shares(steps: int) -> Table:
    """Where a step of mnist-conv with the penalty goes, after `steps` steps."""
    table = Table(
        "A training step of `mnist-conv`, with the penalty",
        f"Shares of the processor time by the profiler, after {steps} steps of the optimiser.",
        ["how", *KINDS, "the rest", FORWARD],
    )
    limit = f"--trainer.max_epochs -1 --trainer.max_steps {steps}"
    for name, words in ADJOINTS.items():
        module, data, _ = trained("mnist-conv", f"{limit} {words}")
        table.add(name, *(f"{100 * share:.0f} %" for share in shares(module, stepper(module, data)).values()))
    return table


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[each.recipe for each in RIVALRIES])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--whole", type=int, metavar="EPOCHS", help="whole trainings of mnist-conv, writes nothing")
    parser.add_argument("--profile", action="store_true", help="a step of mnist-conv by operation, writes nothing")
    parser.add_argument("--seconds", type=float, default=60, help="of the interleaved timing (default: 60)")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "TRAINING.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [each for each in RIVALRIES if not options.only or each.recipe in options.only]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # where Lightning writes its files
        if options.whole or options.profile:
            tables = [whole(whole_contestants(), options.whole)] if options.whole else []
            return tables + ([step_shares(options.steps or 60)] if options.profile else [])
        tables = [compare(each, options.steps, options.seconds) for each in chosen]
    if not (options.only or options.steps):
        write_page(options.output, tables, 1, "Rewritten by `python -m benchmarks.training`.")
        print(f"wrote {options.output}")
    return tables


if __name__ == "__main__":
    main()

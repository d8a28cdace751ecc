"""`fit`, `validate`, `test` and `predict`: LightningCLI with recipes by name and checkpoints that are checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ActionConfigFile, set_parsing_settings  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_only

from torchimplicit.adjoint import Adjoint
from torchimplicit.linear import LinearSolver
from torchimplicit.nn import PathPenalty
from torchimplicit.nn.score.samplers.base import Sampler
from torchimplicit.nn.score.schedule import Schedule
from torchimplicit.ode import PathAdjoint, PathSolver
from torchimplicit.sde import SDESolver
from torchimplicit.solve import Solver
from torchimplicit.train import checkpoint as checkpoints
from torchimplicit.train.callbacks import ConfigFile, SaveOnceTrained
from torchimplicit.train.command import runs
from torchimplicit.train.command.catalogue import resolve
from torchimplicit.train.command.fitting import fit_to_data
from torchimplicit.train.command.loggers import loggers_of
from torchimplicit.train.command.seeding import gives_seed, seed_data
from torchimplicit.train.data.base import DATA_VARIABLE
from torchimplicit.train.data.kernels import Kernel
from torchimplicit.train.data.scaling import Scaling
from torchimplicit.train.errors import OptionError, UsageError
from torchimplicit.train.modules.reconstruction_losses import ReconstructionLoss

# Options on dataclasses are chosen by class in a recipe: jsonargparse wants to be told that subclasses will do.
CHOSEN = [Solver, Adjoint, LinearSolver, PathSolver, PathAdjoint, PathPenalty, SDESolver, Sampler, Schedule, Scaling]
CHOSEN += [Kernel, ReconstructionLoss]
set_parsing_settings(subclasses_enabled=CHOSEN)


class RecipeFile(ActionConfigFile):
    """A configuration file, or the name of a recipe that ships."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolves the name and reads the file."""
        super().__call__(parser, cfg, resolve(values), option_string)


class RecipeParser(LightningArgumentParser):
    """A parser whose errors are for whoever called it to tell."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises an `OptionError`, where jsonargparse would print its usage and leave."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise OptionError(message)


class RecipeCLI(LightningCLI):
    """The training commands.

    `--config` takes a recipe's name; `--ckpt_path` takes 'last' and 'best', found in the runs of the recipe, and is
    checked against the recipe before anything is loaded or trained. A resumed run goes on in its own folder. `test`,
    `validate` and `predict` use the best checkpoint when none is given: untrained weights would answer just as readily.
    """

    def __init__(self, args: list[str] | None = None):
        """Parses and runs; see `LightningCLI`."""
        self._words = sys.argv[1:] if args is None else args
        super().__init__(
            args=args,
            parser_class=RecipeParser,
            save_config_callback=ConfigFile,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose `--config` knows the recipes."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=RecipeFile, help="Name of a recipe, or path of a YAML file.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the folder of the data sets, whichever recipe it is."""
        parser.add_argument(
            "--data-dir",
            type=str | None,
            default=None,
            help=f"Folder of the data sets; as the variable {DATA_VARIABLE}.",
        )
        parser.add_argument(
            "--logger",
            type=Literal["tensorboard", "csv", "wandb", "mlflow"],
            default="tensorboard",
            help="What the curves are logged to. Beside wandb and mlflow, CSV is written for the report.",
        )

    def _parse_ckpt_path(self) -> None:
        """Does nothing: the recipe says what the model is, and a checkpoint has to fit it, not to replace it."""

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint, and says where the run logs."""
        config = self.config[self.config.subcommand]
        config.weights_only = True  # a checkpoint is data
        if config.data_dir:
            os.environ[DATA_VARIABLE] = config.data_dir
        if config.logger != "tensorboard":
            config.trainer.logger = loggers_of(config.logger, config.trainer.logger)
        logger = config.trainer.logger
        logger = logger[0] if isinstance(logger, list) else logger
        logs = getattr(logger, "init_args", None)
        folder = Path(str(logs.get("save_dir", "."))) / str(logs.get("name", "")) if logs else Path("lightning_logs")
        if self.config.subcommand != "fit":
            config.ckpt_path = config.ckpt_path or "best"
            config.trainer.logger = config.trainer.enable_checkpointing = False
            config.trainer.callbacks = [
                each for each in config.trainer.callbacks or [] if not each.class_path.endswith("ModelCheckpoint")
            ]
            self.save_config_callback = None
        if config.ckpt_path:
            config.ckpt_path = str(runs.find(config.ckpt_path, folder))
            states = checkpoints.RESUMED if self.config.subcommand == "fit" else checkpoints.EVALUATED
            self._checkpoint = checkpoints.read(config.ckpt_path, states)
            print(f"weights: {config.ckpt_path}")
            run = runs.of_checkpoint(Path(config.ckpt_path))
            if logs and run.parent == folder.resolve():
                logs["version"] = run.name
        checkpoint = getattr(self, "_checkpoint", None)
        if not gives_seed(self._words):
            seed_data(config, checkpoint)
        try:
            self._looked = fit_to_data(config, checkpoint, self._words)
        except (TypeError, ValueError) as error:
            raise UsageError(_reason(error)) from error

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; a value that one of them refuses is the user's to change.

        Raises:
            UsageError: with what the refusing class says.
        """
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            raise UsageError(_reason(error)) from error
        self.datamodule = self._looked or self.datamodule

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer; its progress bar shows residuals, which three decimals would round to zero."""
        settings = self._get(self.config_init, "trainer")
        self._started = SaveOnceTrained()
        settings.callbacks = [self._started, *(settings.callbacks or [])]
        if settings.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in settings.callbacks
        ):
            bar = RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3g"))
            settings.callbacks = [*settings.callbacks, bar]
        return super().instantiate_trainer(**kwargs)

    def fit(self, **options: Any) -> None:
        """Trains; what fails before that leaves nothing behind, and what is interrupted later says how to go on."""
        logs = getattr(self.trainer.logger, "log_dir", None) if self.trainer.is_global_zero else None
        if not isinstance(logs, str):
            self.trainer.fit(**options)
            return
        try:
            with runs.without_trace(Path(logs), begun=lambda: self._started.begun):
                self.trainer.fit(**options)
        except (Exception, SystemExit):  # Lightning makes the latter of Ctrl-C
            last = Path(logs) / "checkpoints" / "last.ckpt"
            if self._started.begun and last.is_file():
                print(f"interrupted: --ckpt_path last goes on from {last}", file=sys.stderr)
            raise

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs it; a checkpoint whose state cannot be restored is refused in words."""
        with checkpoints.restoring(self.config[subcommand].ckpt_path):
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Says why training ended early, if it did, and where the best weights are."""
        stopper = self.trainer.early_stopping_callback
        if isinstance(stopper, EarlyStopping) and stopper.stopping_reason_message:
            rank_zero_only(print)(f"stopped after epoch {stopper.stopped_epoch}: {stopper.stopping_reason_message}")
        for each in self.trainer.checkpoint_callbacks:
            if isinstance(each, ModelCheckpoint) and each.monitor and each.best_model_path:
                rank_zero_only(print)(f"best checkpoint: {os.path.relpath(each.best_model_path)}")

    def after_instantiate_classes(self) -> None:
        """Checks the checkpoint, and notes the configuration for the checkpoints to come."""
        config = self.config[self.config.subcommand]
        if config.ckpt_path:
            checkpoints.check(self._checkpoint, self.model, config.ckpt_path)
            del self._checkpoint
        self._dump_config()
        self.model.config = _portable({key: self.config_dump.get(key) for key in ("model", "data")})
        if self.config.subcommand == "predict":
            writer = self.model.prediction_writer(runs.of_checkpoint(Path(config.ckpt_path)))
            self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]


def _reason(error: Exception) -> str:
    """What a class said about its arguments, out of jsonargparse's list of all that it tried."""
    lines = str(error).splitlines() or [type(error).__name__]
    reasons = [line.removeprefix("  - ") for line in lines if line.startswith("  - ") and "NoneType" not in line]
    return reasons[0] if reasons else lines[0]


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the folder of one machine's data."""
    data = config.get("data") or {}
    data.get("init_args", {}).pop("data_dir", None)
    return config

"""Where the curves of a run go, by a word: CSV for the report, and beside it Weights & Biases or MLflow."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from jsonargparse import Namespace

from torchimplicit.train.errors import UsageError

PLACE = "lightning.pytorch.loggers"


def loggers_of(kind: str, usual: Any) -> Any:
    """The trainer's loggers as configuration, in the folder and by the name of the recipe's own.

    Args:
        kind: "csv", "wandb" or "mlflow".
        usual: the recipe's logger.

    Raises:
        UsageError: the package is not installed.
    """
    given = getattr(usual, "init_args", None) or Namespace()
    folder, name = str(given.get("save_dir", "runs")), str(given.get("name", "run"))
    table = _described("CSVLogger", save_dir=folder, name=name)
    if kind == "csv":
        return table
    if find_spec(kind) is None:
        raise UsageError(f"--logger {kind}: the package is not installed. Try pip install {kind}, or --logger csv.")
    if kind == "wandb":
        return [table, _described("WandbLogger", save_dir=folder, project=name)]
    where = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")  # MLflow 3 refuses folders
    return [table, _described("MLFlowLogger", tracking_uri=where, experiment_name=name)]


def _described(kind: str, /, **arguments: Any) -> Namespace:
    return Namespace(class_path=f"{PLACE}.{kind}", init_args=Namespace(**arguments))

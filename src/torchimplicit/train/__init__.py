"""Recipes: data, networks, the Lightning module and the `torchimplicit` command. Needs the extra `train`.

Names are imported when they are first used, so that the command answers `--help` without loading Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchimplicit.train.checkpoint import CheckpointError, load
    from torchimplicit.train.classifier import Classifier
    from torchimplicit.train.data import MNIST, DataError, Digits, ImageData
    from torchimplicit.train.meter import SolveMeter
    from torchimplicit.train.networks import DigitsNetwork, MNISTNetwork
    from torchimplicit.train.report import write_report

_HOMES = {
    "CheckpointError": "checkpoint",
    "Classifier": "classifier",
    "DataError": "data",
    "Digits": "data",
    "DigitsNetwork": "networks",
    "ImageData": "data",
    "MNIST": "data",
    "MNISTNetwork": "networks",
    "SolveMeter": "meter",
    "load": "checkpoint",
    "write_report": "report",
}

__all__ = [
    "MNIST",
    "CheckpointError",
    "Classifier",
    "DataError",
    "Digits",
    "DigitsNetwork",
    "ImageData",
    "MNISTNetwork",
    "SolveMeter",
    "load",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Recipes: data, networks, Lightning modules and the `torchimplicit` command. Needs the extra `train`.

Names are imported when they are first used, so that the command answers `--help` without loading Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchimplicit.train.checkpoint import CheckpointError, load
    from torchimplicit.train.command.report import write_report

_HOMES = {"CheckpointError": "checkpoint", "load": "checkpoint", "write_report": "command.report"}

__all__ = ["CheckpointError", "load", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

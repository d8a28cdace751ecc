"""Checkpoints that know where they come from: which recipe and network wrote them, and how to build it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.trainer.connectors import checkpoint_connector
from torch.distributed.fsdp import FSDPModule

from torchimplicit.core.status import ImplicitError
from torchimplicit.files import reason, require_unpacked
from torchimplicit.train.data.base import FittingData
from torchimplicit.train.trust import TRUSTED, UntrustedError, build

KEY = "torchimplicit"  # of our entry in a checkpoint
EVALUATED = {"pytorch-lightning_version": str}  # what Lightning demands beside the weights
RESUMED = EVALUATED | {"epoch": int, "global_step": int, "loops": dict, "optimizer_states": list, "lr_schedulers": list}


class CheckpointError(ImplicitError, RuntimeError):
    """A checkpoint is absent, unreadable, or belongs to another recipe."""


def origin(module: Any) -> dict[str, Any]:
    """The entry that says whose weights these are, for a module with `network`, `recipe` and `config`."""
    return {KEY: {"recipe": module.recipe, "network": _path_of(module.network), "config": module.config}}


def read(path: str | Path, states: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The content of a checkpoint file; executes nothing from it.

    Args:
        path: of the file.
        states: what it shall have beside weights: `EVALUATED`, or `RESUMED` for a run to go on; None for nothing.

    Raises:
        CheckpointError: the file is absent or no such checkpoint.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint. Try the path of a .ckpt file; with --config also 'last' or 'best'."
        )
    try:
        require_unpacked(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        raise CheckpointError(
            f"{path}: cannot read this as a checkpoint ({reason(error)}). Try another file."
        ) from error
    _demand(path, content, {"state_dict": dict} | dict(states or {}))
    _demand(path, content["state_dict"], dict.fromkeys(content["state_dict"], torch.Tensor))
    if content.get(KEY) is not None:
        _demand(path, content, {KEY: dict})
        _demand(path, content[KEY], {"recipe": str, "network": str})
    return content


def _demand(path: str | Path, content: Any, kinds: Mapping[str, type]) -> None:
    """Raises if an entry is not there, or of another kind."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got a {type(content).__name__}, expected a checkpoint, a dict.")
    for name, kind in kinds.items():
        if name not in content:
            raise CheckpointError(f"{path}: has no {name!r}, expected a checkpoint that does. Try another file.")
        if not isinstance(content[name], kind):
            got = type(content[name]).__name__
            raise CheckpointError(f"{path}: its {name!r} is a {got}, expected a {kind.__name__}. Try another file.")


@contextmanager
def restoring(path: str | Path | None) -> Iterator[None]:
    """Says in words why Lightning cannot go on from a checkpoint.

    Raises:
        CheckpointError: for whatever was raised while a state was restored.
    """
    try:
        yield
    except ImplicitError:
        raise
    except Exception as error:
        if not any(frame.filename == checkpoint_connector.__file__ for frame in extract_tb(error.__traceback__)):
            raise
        raise CheckpointError(
            f"{path}: cannot go on from this checkpoint: {reason(error)}. It is as it was."
        ) from error


def check(checkpoint: dict[str, Any], module: Any, path: str | Path = "checkpoint") -> None:
    """Compares a checkpoint with the module that shall take its weights.

    Raises:
        CheckpointError: they belong to different recipes or networks, or their tensors differ.
    """
    entry = checkpoint.get(KEY, {})
    got = (entry.get("recipe", "unknown"), entry.get("network", "an unknown network"))
    expected = (module.recipe, _path_of(module.network))
    if entry and got != expected:
        raise CheckpointError(
            f"{path}: got a checkpoint of recipe {got[0]!r} ({_name(got[1])}), expected one of recipe {expected[0]!r} "
            f"({_name(expected[1])}). Try --config {got[0]}, or a checkpoint of {expected[0]!r}."
        )
    theirs, ours = (
        {name: tuple(t.shape) for name, t in each.items()} for each in (checkpoint["state_dict"], module.state_dict())
    )
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{path}: {len(differing)} of {len(ours)} tensors do not fit {_name(expected[1])}; {name}: got "
            f"{theirs.get(name, 'none')}, expected {ours.get(name, 'none')}. Try the options that it was trained with."
        )


def data_of(checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """How the command built the data that a checkpoint was trained on; empty where none says so."""
    entry = (checkpoint or {}).get(KEY) or {}
    return (entry.get("config") or {}).get("data") or {}


def load(path: str | Path, trust: Sequence[str] = ()) -> tuple[LightningModule, LightningDataModule | None]:
    """Builds the model of a checkpoint with its weights, and its data module (which loads nothing yet).

    A checkpoint is data: it names classes to build, and only those of torchimplicit, `torch.nn` and `torch.optim`, and
    of the modules that are trusted, are imported or called.

    Args:
        path: a checkpoint that the `torchimplicit` command wrote.
        trust: names of modules of your own whose classes it may build, such as `("my_project.networks",)`; all below
            them count.

    Raises:
        CheckpointError: the file is absent, unreadable, names what is not trusted, or was not written by the command.
    """
    content = read(path)
    config = content.get(KEY, {}).get("config")
    if not config:
        raise CheckpointError(
            f"{path}: does not say how to build its model, as it was not written by the torchimplicit command. Try to "
            "build the module yourself, and module.load_state_dict(torch.load(path, weights_only=True)['state_dict'])."
        )
    trust = (trust,) if isinstance(trust, str) else trust
    try:
        model = _built(config, "model", LightningModule, trust)
        data = _built(config, "data", LightningDataModule, trust)
    except UntrustedError as error:
        raise CheckpointError(
            f"{path}: not built, for {error}; expected classes of {', '.join(TRUSTED)}. Where the file and the module "
            "are ones you know, try --trust MODULE (in Python trust=('MODULE',))."
        ) from error
    except Exception as error:  # whatever the classes say about their arguments
        raise CheckpointError(f"{path}: cannot build its model again: {reason(error)}.") from error
    check(content, model, path)
    model.load_state_dict(content["state_dict"])
    model.config = config
    if isinstance(data, FittingData):
        data.restore(content)
    return model.eval(), data


def _built(config: Any, name: str, kind: type, trust: Sequence[str]) -> Any:
    if not isinstance(config, dict):
        raise TypeError(f"its configuration is a {type(config).__name__}, expected a dict")
    if config.get(name) is None and name == "data":
        return None
    found = build(config.get(name), trust)
    if not isinstance(found, kind):
        raise TypeError(f"its {name} is a {type(found).__name__}, expected a {kind.__name__}")
    return found


def _path_of(thing: Any) -> str:
    kind = type(thing)
    if isinstance(thing, FSDPModule):  # sharding has put a class of its own in front of the network's
        kind = kind.__bases__[1]
    return f"{kind.__module__}.{kind.__qualname__}"


def _name(path: str) -> str:
    return path.rpartition(".")[2]

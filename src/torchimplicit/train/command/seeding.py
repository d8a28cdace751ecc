"""One seed moves all: the split and the order of the data follow `seed_everything`, as the first weights do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from torchimplicit.train.checkpoint import data_of
from torchimplicit.train.command import catalogue

OPTIONS = ("--data.seed", "--data.init_args.seed")


def gives_seed(words: Sequence[str]) -> bool:
    """Whether words of the command, or the recipe that they name, give the data a seed of its own."""
    if any(word.partition("=")[0] in OPTIONS for word in words):
        return True
    name = catalogue.named(words)
    settings = yaml.safe_load(Path(catalogue.resolve(name)).read_text()) if name else None
    data = settings.get("data") if isinstance(settings, dict) else None
    return isinstance(data, dict) and "seed" in (data.get("init_args") or {})


def seed_data(config: Namespace, checkpoint: Mapping[str, Any] | None) -> None:
    """Gives the data the seed of all, or that which a checkpoint was trained with.

    Args:
        config: of a training command, changed in place.
        checkpoint: whose weights the model shall have.
    """
    arguments = config.data.get("init_args") if config.get("data") else None
    if arguments is None or "seed" not in arguments:
        return
    known = (data_of(checkpoint).get("init_args") or {}).get("seed")
    seed = config.seed_everything if known is None else known
    if isinstance(seed, int) and not isinstance(seed, bool):
        arguments.seed = seed

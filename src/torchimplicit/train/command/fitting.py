"""What a configuration leaves open, the user's own data says: classes, channels, features, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning_utilities.core.rank_zero import rank_zero_only

from torchimplicit.train.checkpoint import data_of
from torchimplicit.train.data.base import FittingData
from torchimplicit.train.errors import UsageError


def fit_to_data(
    config: Namespace, checkpoint: Mapping[str, Any] | None, words: Sequence[str] = ()
) -> LightningDataModule | None:
    """Looks at the data, and writes what was found into the configuration, as if it had been given.

    Args:
        config: of a training command, changed in place: the arguments that the data infers, and the sizes of module and
            network.
        checkpoint: whose weights the model shall have; what was inferred for it is taken over where nothing else was
            given, so that a model is tested as it was trained.
        words: of the command line, which may not give other sizes than the data; a recipe may.

    Returns:
        The data module that has looked, or None where data and network have sizes of their own.

    Raises:
        UsageError: a size was given that is not that of the data.
        DataError: the data is absent or not what it should be.
    """
    kind = resolve_name(config.data.class_path) if config.get("data") else None
    if kind is None or not issubclass(kind, FittingData):
        return None
    arguments = config.data.init_args
    trained = data_of(checkpoint)
    if trained.get("class_path") == config.data.class_path:
        known = trained.get("init_args") or {}
        for name in kind.inferred:
            if arguments.get(name) is None:
                arguments[name] = known.get(name)
    data = kind(**arguments.as_dict())
    data.prepare_data()
    if checkpoint is not None:
        data.restore(dict(checkpoint))
    data.look()
    for name, value in data.found().items():
        arguments[name] = value
    sizes = data.sizes()
    taken = _take(config.model.init_args, sizes, "--model.", words)
    network = config.model.init_args.get("network")
    if network is not None:
        taken |= _take(network.init_args, sizes, "--model.network.", words)
    told = ", ".join(f"{name} {value}" for name, value in taken.items()) or "no sizes"
    rank_zero_only(print)(f"data: {data.describe()}\nmodel: {told}, from the data")
    return data


def _take(arguments: Namespace, sizes: Mapping[str, int], prefix: str, words: Sequence[str]) -> dict[str, int]:
    """Writes the sizes into the arguments of a class, where it has arguments of these names."""
    given = {word.partition("=")[0] for word in words}
    taken = {}
    for name, size in sizes.items():
        if name not in arguments:
            continue
        if f"{prefix}{name}" in given and arguments[name] != size:
            raise UsageError(
                f"{prefix}{name} {arguments[name]}: the data has {size}. Try without this option: the size is taken "
                "from the data."
            )
        arguments[name] = taken[name] = size
    return taken

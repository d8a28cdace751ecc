"""A checkpoint is data: which classes it may name, so that reading one runs nobody's code but ours and the user's."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRUSTED = ("torchimplicit", "torch.nn", "torch.optim")
LARGEST = 100_000  # values in a configuration; one that holds itself, or itself many times, has no end


class UntrustedError(ValueError):
    """A configuration names what may not be built."""


def examine(config: Any, trust: Iterable[str] = ()) -> None:
    """Refuses a configuration that would have anything built, called or imported but a class of a trusted module.

    Every text counts, whatever it is the value of: a dotted path is imported where an option takes a class or a
    function, and a file is read where it takes a class. Only modules that are trusted are imported to look. A dotted
    text whose first part is no module, such as the name of a data file, can name nothing.

    Args:
        config: of dictionaries, lists and plain values.
        trust: modules whose classes are trusted beside `TRUSTED`, with all below them.

    Raises:
        UntrustedError: with what is named.
        ValueError: a trusted module has no such class.
    """
    modules = (*TRUSTED, *trust)
    for count, (key, value) in enumerate(_entries(config)):
        if count > LARGEST:
            raise UntrustedError(f"its configuration has more than {LARGEST} values")
        if key == "class_path" and not isinstance(value, str):
            raise UntrustedError(f"it names {value!r}, expected the dotted path of a class")
        if not isinstance(value, str):
            continue
        if key == "class_path" or _names_something(value):
            _require_class(value, modules)
        elif _is_text_file(value):
            raise UntrustedError(f"{key!r} names the file {value!r}, which would be read as part of the configuration")


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in a configuration, keys too, with the key that it stands under."""
    yield key, value
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield "", name
            yield from _entries(each, name)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _entries(each, key)


def _names_something(text: str) -> bool:
    """Whether it is a dotted path into a module that this Python has. Imports nothing."""
    parts = text.strip().split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return False
    try:
        return find_spec(parts[0]) is not None
    except (ImportError, ValueError):
        return True  # loaded in some way of its own


def _is_text_file(text: str) -> bool:
    """Whether it is the path of a file that could hold YAML; that has no zero bytes, as archives of arrays do."""
    try:
        if not Path(text).exists() or Path(text).is_dir():
            return False
        if not Path(text).is_file():
            return True  # a device or a pipe: not to be opened
        with Path(text).open("rb") as file:
            return b"\0" not in file.read(4096)
    except (OSError, ValueError):
        return False


def _require_class(path: str, modules: tuple[str, ...]) -> None:
    """Raises if a dotted path is not that of a class defined in one of the modules, or below."""
    module, _, name = path.rpartition(".")
    if not _within(module, modules):
        raise UntrustedError(f"it names {path!r}, whose module is not trusted")
    try:
        thing = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} does not exist ({error})") from error
    if not inspect.isclass(thing):
        raise UntrustedError(f"it names {path!r}, a {type(thing).__name__}, expected a class")
    if not _within(thing.__module__, modules):
        raise UntrustedError(f"it names {path!r}, a class of {thing.__module__}, whose module is not trusted")


def _within(module: str, modules: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in modules)

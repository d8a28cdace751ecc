"""Builds what a checkpoint describes, out of classes that are trusted. A description is data: it can call nothing else.

Recipes are built by jsonargparse, for they are the user's own and may name whatever can be imported. A checkpoint may
come from anybody. Here a name in it is looked up only where it says `class_path`, only in modules that are trusted, and
only for a class that was defined there; every other string stays a string.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lightning.pytorch import LightningDataModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OURS = "torchimplicit"
TORCHS = ("torch.nn", "torch.optim")  # looked up, never imported: what torch has not loaded by itself is not needed
TRUSTED = (OURS, *TORCHS)
KINDS = (nn.Module, LightningDataModule, Optimizer, LRScheduler)  # of these modules' classes, and options: dataclasses
LARGEST = 10_000  # values in a description; the recipes have about fifty


class UntrustedError(ValueError):
    """A description names what it may not."""


def build(description: Any, trust: Sequence[str] = ()) -> Any:
    """The object that `{"class_path": ..., "init_args": {...}}` describes; its arguments may be descriptions, too.

    Args:
        description: plain data, as a YAML file holds it.
        trust: modules and packages whose classes may be named and imported, beside torchimplicit's, torch.nn's and
            torch.optim's.

    Raises:
        UntrustedError: it names anything else.
        ValueError: it is not what a recipe's configuration looks like.
        Exception: what the classes raise about their arguments.
    """
    for module in trust:
        if not _dotted(module):
            raise ValueError(f"got trust={module!r}, expected the name of a module, such as 'my_package.networks'")
    _check_plain(description)
    if not _describes(description):
        raise ValueError(f"it describes {_short(description)}, expected a class_path with init_args")
    return _object(description, tuple(trust))


def _object(description: dict[str, Any], trust: tuple[str, ...]) -> Any:
    unknown = description.keys() - {"class_path", "init_args", "dict_kwargs"}
    arguments = [description.get(name) or {} for name in ("init_args", "dict_kwargs")]
    if unknown or not all(isinstance(each, dict) for each in arguments):
        raise ValueError(f"it describes {_short(description)}, expected a class_path with init_args")
    kind = _class(description["class_path"], trust)
    hints = _hints(kind)
    named = arguments[1] | arguments[0]
    return kind(**{name: _value(value, hints.get(name), trust) for name, value in named.items()})


def _value(value: Any, hint: Any, trust: tuple[str, ...]) -> Any:
    """An argument, from its description and the annotation of its parameter."""
    if _describes(value):
        return _object(value, trust)
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, dict):
        options = [each for each in hints if is_dataclass(each) and isinstance(each, type)]  # without a class_path
        if options:
            known = [each for each in options if value.keys() <= {field.name for field in fields(each)}]
            kind = (known or options)[0]  # a union tells its classes apart by what they have
            inner = _hints(kind)
            return kind(**{name: _value(item, inner.get(name), trust) for name, item in value.items()})
        return {name: _value(item, None, trust) for name, item in value.items()}
    if isinstance(value, list):
        items = [_value(item, None, trust) for item in value]
        return tuple(items) if any(get_origin(each) is tuple or each is tuple for each in hints) else items
    return value


def _class(name: Any, trust: tuple[str, ...]) -> type:
    """The class of that name, if it and the module that defines it are trusted; imports no other module."""
    if not isinstance(name, str) or not _dotted(name) or "." not in name:
        raise UntrustedError(f"its class_path is {_short(name)}, expected the dotted path of a class")
    place, _, own = name.rpartition(".")
    if not _within(place, (*TRUSTED, *trust)):
        raise _untrusted(name, place)
    if _within(place, TORCHS) and not _within(place, trust):
        module = sys.modules.get(place)
    else:
        try:
            module = import_module(place)
        except ImportError as error:
            raise ValueError(f"{name!r} does not exist ({error})") from error
    found = getattr(module, own, None)
    if found is None:
        raise ValueError(f"{name!r} does not exist")
    if not isinstance(found, type):
        raise UntrustedError(f"it names {name!r}, a {type(found).__name__}, expected a class")
    home = found.__module__
    if not _within(home, (*TRUSTED, *trust)):
        raise _untrusted(f"{home}.{found.__qualname__}", home)
    if not (_within(home, trust) or issubclass(found, KINDS) or is_dataclass(found)):
        raise UntrustedError(f"it names {name!r}, expected a class of modules, of data modules, or of options of these")
    return found


def _untrusted(name: str, module: str) -> UntrustedError:
    return UntrustedError(f"it names {name!r}, and the module {module} is not trusted")


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in packages)


def _dotted(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _describes(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def _hints(kind: type) -> dict[str, Any]:
    """Annotations of the parameters, also of those that go on to a base as keywords."""
    hints: dict[str, Any] = {}
    for base in reversed(inspect.getmro(kind)):
        if "__init__" in vars(base):
            try:
                hints |= get_type_hints(base.__init__)
            except (NameError, TypeError, AttributeError):  # names that exist for type checkers alone
                continue
    return hints


def _check_plain(description: Any) -> None:
    """Refuses what is no plain data, and what would take for ever to walk through."""
    left, count = [description], 0
    while left:
        value, count = left.pop(), count + 1
        if count > LARGEST:
            raise UntrustedError(f"its configuration has more than {LARGEST} values")
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value
        elif not isinstance(value, (str, int, float, bool, type(None))):
            raise UntrustedError(f"its configuration holds a {type(value).__name__}, expected plain data")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

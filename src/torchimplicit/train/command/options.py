"""What can be changed in a recipe: the options of the classes that it names, with types, values and words."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from jsonargparse import ArgumentParser

import torchimplicit
from torchimplicit.train import data, modules, networks
from torchimplicit.train.command import catalogue
from torchimplicit.train.data import FittingData

SEE = re.compile(r"see `(\w+)(?:\.\w+)?`\.?$")
HIDDEN = "==SUPPRESS=="
WIDTH = 80


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as it is written on the command line, without the dashes.
        kind: its type.
        value: what the recipe says, else the default; None where it must be given.
        words: what it is.
        required: it must be given.
        fitted: it is a size, and taken from the data.
    """

    name: str
    kind: Any
    value: Any
    words: str
    required: bool = False
    fitted: bool = False

    def text(self) -> str:
        """A line with name, type and value, and what it is below."""
        value = "required" if self.required else "from the data" if self.fitted else f"= {_shown(self.value)}"
        head = textwrap.shorten(f"--{self.name}  {_kind(self.kind)} {value}", WIDTH - 2, placeholder=" ...")
        return f"  {head}\n{textwrap.fill(self.words, WIDTH, initial_indent=' ' * 6, subsequent_indent=' ' * 6)}"


@dataclass(frozen=True)
class Group:
    """The options of one class.

    Attributes:
        place: of the class, such as "model.network".
        kind: the class.
        options: its own; those of classes that it is made of have groups of their own.
    """

    place: str
    kind: type
    options: tuple[Option, ...]


def groups_of(recipe: Path) -> list[Group]:
    """The options of a recipe, class by class."""
    settings = yaml.safe_load(recipe.read_text())
    found = [each for place in ("model", "data") if settings.get(place) for each in _groups(settings[place], place)]
    sized = next((group.kind.sized for group in found if issubclass(group.kind, FittingData)), ())
    own = {f"{place}.{name}" for place in ("model", "model.network") for name in sized}
    return [
        replace(group, options=tuple(replace(each, fitted=each.name in own) for each in group.options))
        for group in found
    ]


def show(name: str, command: str) -> None:
    """Prints what can be changed in a recipe."""
    path = Path(catalogue.resolve(name))
    what, needs = catalogue.describe(path)
    print(f"{textwrap.fill(f'{name}: {what}', WIDTH)}\n{textwrap.fill(f'data: {needs}', WIDTH)}")
    for group in groups_of(path):
        print(f"\n--{group.place} {group.kind.__name__}")
        print(textwrap.fill(_first_line(group.kind), WIDTH, initial_indent="  ", subsequent_indent="  "))
        print("\n".join(option.text() for option in group.options))
    given = yaml.safe_load(path.read_text()).get("trainer", {})
    plain = {key: value for key, value in given.items() if not isinstance(value, (dict, list))}
    print("\n--trainer, of which the recipe sets")
    print("\n".join(f"  --trainer.{key} = {_shown(value)}" for key, value in plain.items()))
    print(f"""
Besides:
  --seed_everything N   moves all: split, first weights, order of the batches
  --logger KIND         tensorboard, csv, wandb or mlflow
  --data-dir DIR        folder of the data sets
  --ckpt_path last      go on with the latest run
A class is chosen by its name (--model.network.solver Newton), and its options
with it (--model.network.solver.rtol 1e-3). All that Lightning's trainer takes:
  torchimplicit {command} --help
The recipe as a file: torchimplicit {command} --config {name} --print_config""")


def known(base: Any) -> list[str]:
    """Names of the classes of this package that may stand for a base."""
    places = (torchimplicit, torchimplicit.nn, torchimplicit.sde, networks, modules, data)
    found = {name: getattr(place, name) for place in places for name in place.__all__}
    return sorted(
        name for name, each in found.items() if isinstance(each, type) and issubclass(each, base) and each is not base
    )


def _groups(description: Mapping[str, Any], place: str) -> Iterator[Group]:
    kind = resolve_name(description["class_path"])
    given = description.get("init_args") or {}
    options, inner = [], []
    for option in _options(kind, place):
        value = _value(given, option.name.removeprefix(f"{place}."), option.value)
        if isinstance(value, Mapping) and "class_path" in value:
            inner.append((value, option.name))
        options.append(Option(option.name, option.kind, value, option.words, option.required and value is None))
    yield Group(place, kind, tuple(options))
    for value, name in inner:
        yield from _groups(value, name)


def _options(kind: type, place: str) -> Iterator[Option]:
    """Those of a class, with their defaults, as jsonargparse finds them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, place, fail_untyped=False)
    for action in parser._actions:
        if action.default == HIDDEN or not action.dest.startswith(f"{place}."):
            continue
        words = _followed(kind, action.dest.removeprefix(f"{place}."), " ".join((action.help or "").split()))
        hint = getattr(action, "_typehint", None) or action.type
        yield Option(action.dest, hint, action.default, words, getattr(action, "_required", action.required))


def _followed(kind: type, name: str, words: str) -> str:
    """What is said elsewhere, where a docstring says no more than where."""
    seen = SEE.match(words)
    if not seen:
        return words
    places = (torchimplicit, torchimplicit.nn, networks, modules, data)
    bases = {each.__name__: each for each in kind.__mro__}
    others = [bases.get(seen[1]), *(getattr(place, seen[1], None) for place in places)]
    other = next((each for each in others if each is not None), None)
    if not isinstance(other, type) or other is kind:
        return words
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(other, "x", fail_untyped=False)
    found = [" ".join((action.help or "").split()) for action in parser._actions if action.dest == f"x.{name}"]
    return _followed(other, name, found[0]) if found else words


def _value(given: Mapping[str, Any], name: str, default: Any) -> Any:
    for part in name.split("."):
        if not isinstance(given, Mapping) or part not in given:
            return default
        given = given[part]
    return given


def _shown(value: Any) -> str:
    path = value.get("class_path") if hasattr(value, "get") else None
    if path:
        return str(path).rpartition(".")[2]
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_flag(value) else str(value)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _kind(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    text = re.sub(r"(?:[\w]+\.)+(\w+)", r"\1", text).replace("NoneType", "null")
    return re.sub(r"Optional\[(.*)\]$", r"\1 | null", text)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")

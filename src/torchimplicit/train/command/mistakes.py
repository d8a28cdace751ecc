"""What is wrong with the words of a training command, in a line or two, in place of all that the parser tried."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from torchimplicit.train.command import catalogue
from torchimplicit.train.command.options import Group, groups_of, known
from torchimplicit.train.errors import OptionError

KEY = re.compile(r'Parser key "([^"]+)"')
REASONS = {
    "unknown": re.compile(r"unrecognized arguments: -*([\w.+-]+)|Option '([\w.]+)' is not accepted"),
    "missing": re.compile(r"arguments are required: (\w+)"),
    "type": re.compile(r"Expected a <class '(?!NoneType)(\w+)'>"),
    "class": re.compile(r"Expected a dot import path string: (\S*)"),
    "choice": re.compile(r"Literal\[[^\]]*\]"),
}
OTHERS = ("config", "seed_everything", "ckpt_path", "data-dir", "logger", "print_config", "weights_only")


def explained(message: str, words: Sequence[str]) -> OptionError:
    """The error that says it shortly.

    Args:
        message: of jsonargparse.
        words: of the command line.
    """
    groups = _groups(words)
    help_ = f"All options: torchimplicit {words[0]} --config {catalogue.named(words) or 'RECIPE'} --help"
    found = {name: pattern.search(message) for name, pattern in REASONS.items()}
    place = ".".join(dict.fromkeys(KEY.findall(message)))
    strange = re.search(r"unrecognized arguments: (\S+)", message)
    if strange and not strange[1].startswith("-"):
        files = " Files go behind a checkpoint: torchimplicit predict CKPT FILE ..." if words[0] == "predict" else ""
        return OptionError(f"{strange[1]}: expected options, which begin with --.{files}\n{help_}")
    if match := found["unknown"]:
        name = ".".join(part for part in (place, match[1] or match[2]) if part)
        return OptionError(f"--{name}: no such option.{_meant(name, _names(groups))}\n{help_}")
    value = (re.search(r"Given value: .*|Got value: .*", message) or [""])[0].partition(": ")[2]
    if match := found["missing"]:
        needs = catalogue.describe(Path(catalogue.resolve(catalogue.named(words) or "")))[1] if groups else ""
        return OptionError(f"--{place}.{match[1]} must be given{f': {needs}' if needs else ''}.\n{help_}")
    if match := found["class"]:
        names = known(_base(groups, place))
        meant = _meant(match[1], names, "")
        return OptionError(f"--{place} {match[1]}: no such class.{meant} Expected one of {', '.join(names)}.")
    if found["choice"]:
        choices = re.findall(r"'([^']*)'|\b(\d+)\b", " ".join(REASONS["choice"].findall(message)))
        names = list(dict.fromkeys(text or digits for text, digits in choices))
        return OptionError(f"--{place} {value}:{_meant(value, names, '')} Expected one of {', '.join(names)}.")
    if kinds := dict.fromkeys(REASONS["type"].findall(message)):
        return OptionError(f"--{place} {value}: expected {' or '.join(kinds)}.\n{help_}")
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    return OptionError(f"{f'--{place}: ' if place else ''}{lines[-1] if len(lines) == 1 else lines[1]}\n{help_}")


def _groups(words: Sequence[str]) -> list[Group]:
    name = catalogue.named(words)
    return groups_of(Path(catalogue.resolve(name))) if name else []


def _names(groups: Sequence[Group]) -> list[str]:
    """All options that there are, as far as the recipe's classes go."""
    own = [option.name for group in groups for option in group.options]
    return [*own, *OTHERS, *(f"trainer.{name}" for name in inspect.signature(Trainer).parameters)]


def _base(groups: Sequence[Group], place: str) -> type:
    """What a class that an option names must be derived from."""
    tops = {"model": LightningModule, "data": LightningDataModule}
    kinds = {option.name: option.kind for group in groups for option in group.options}
    kind = tops.get(place) or kinds.get(place)
    return kind if isinstance(kind, type) else object


def _meant(name: str, names: Sequence[str], dashes: str = "--") -> str:
    """A question, where something like it is there: the same but for letters, or the end of its path."""
    ends = [each for each in names if each.rpartition(".")[2] == name.rpartition(".")[2]]
    names = [each for each in names if not name.startswith(f"{each}.")]
    close = difflib.get_close_matches(name, ends, 1, 0.5) or difflib.get_close_matches(name, names, 1, 0.75) or ends[:1]
    return f" Did you mean {dashes}{close[0]}?" if close else ""

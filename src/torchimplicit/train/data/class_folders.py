"""Folders of pictures, one a class: what is there, and which of it trains, validates and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_warn

from torchimplicit.train.data.base import DataError, Splits, permutation
from torchimplicit.train.data.pictures import SUFFIXES, others_in, pictures_in

PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
TREE = "Expected a folder for every class, each with its pictures: photos/cats/1.jpg, photos/dogs/1.jpg."
ByClass = dict[str, list[Path]]


class Listed(NamedTuple):
    """Pictures of one split.

    Attributes:
        paths: of the files.
        labels: numbers of their classes.
    """

    paths: list[Path]
    labels: list[int]


def divided(
    folder: Path, labels: Sequence[str] | None, validation: float, test: float, seed: int
) -> tuple[list[str], dict[str, Listed]]:
    """Names of the classes and the files of the splits; see `ImageFolder`.

    Raises:
        DataError: it is no such folder, or has too few pictures.
    """
    if not folder.is_dir():
        raise DataError(f"ImageFolder: {folder}: no such folder. {TREE}")
    places = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in PARTS.items()
    }
    if places["train"] is None or places["val"] is places["test"] is None:  # a class may have one of these names
        places = {"train": folder, "val": None, "test": None}
    found = by_class(places["train"] or folder, labels)
    labels = list(labels or found)
    parts = {"train": found}
    for split, share, draw in (("test", test, 0), ("val", validation, seed)):
        place = places[split]
        if place is not None:
            parts[split] = by_class(place, labels)
        else:
            cut = {name: max(1, round(share * len(paths))) for name, paths in found.items()}
            parts[split], parts["train"] = _parted(parts["train"], cut, draw)
    poor = next((name for name, paths in parts["train"].items() if not paths), None)
    if poor is not None:
        raise DataError(
            f"ImageFolder: class {poor!r} has {len(found[poor])} pictures in {folder}, expected 3 at least, to train, "
            "validate and test. Try more of them."
        )
    return labels, {split: _listed(parts[split], labels) for split in Splits._fields}


def by_class(folder: Path, labels: Sequence[str] | None) -> ByClass:
    """The pictures of every class.

    Args:
        folder: with a folder for each.
        labels: the classes that there may be; None for any, two at least.

    Raises:
        DataError: it is no such folder.
    """
    places = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    found = {place.name: pictures_in(place) for place in places}
    if not found:
        loose = pictures_in(folder)
        there = f"{len(loose)} pictures, but in no folder of a class" if loose else "no folders"
        raise DataError(f"ImageFolder: {folder} has {there}. {TREE}")
    for name, paths in found.items():
        if not paths:
            others = others_in(folder / name)
            there = f", but {len(others)} others, such as {others[0].name}" if others else ""
            raise DataError(
                f"ImageFolder: {folder / name} has no pictures ({', '.join(SUFFIXES)}){there}. Try to fill it, to "
                "convert what is there, or to take it away."
            )
    if labels is None and len(found) == 1:
        raise DataError(f"ImageFolder: {folder} has one class, {next(iter(found))!r}, expected two or more. {TREE}")
    strange = [name for name in found if labels is not None and name not in labels]
    if strange:
        raise DataError(
            f"ImageFolder: {folder} has the class {strange[0]!r}, expected one of those that train, "
            f"{', '.join(labels or ())}. Try to take it away, or to train with it."
        )
    left = others_in(folder)
    if left:
        rank_zero_warn(
            f"ImageFolder: {folder} has {len(left)} files that are no pictures by their names, such as {left[0]}; "
            f"left out. Pictures end in {', '.join(SUFFIXES)}."
        )
    return found


def _parted(found: ByClass, cut: dict[str, int], seed: int) -> tuple[ByClass, ByClass]:
    """So many of every class, at random, and the others."""
    taken, left = {}, {}
    for i, (name, paths) in enumerate(found.items()):
        order = permutation(len(paths), seed + i).tolist()
        taken[name] = [paths[j] for j in order[: cut[name]]]
        left[name] = [paths[j] for j in order[cut[name] :]]
    return taken, left


def _listed(part: ByClass, labels: Sequence[str]) -> Listed:
    number = {name: i for i, name in enumerate(labels)}
    return Listed(
        [path for paths in part.values() for path in paths],
        [number[name] for name, paths in part.items() for _ in paths],
    )

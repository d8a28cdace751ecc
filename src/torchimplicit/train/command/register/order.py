"""What is asked for of `torchimplicit register`, refused before anything is read where it cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchimplicit.imaging.register import (
    LNCC,
    NCC,
    SSD,
    Affine,
    BSpline,
    Demons,
    MutualInformation,
    Rigid,
    Similarity,
    Variational,
)
from torchimplicit.train.command.register.volumes import PICTURES, VOLUMES, is_picture
from torchimplicit.train.errors import UsageError

Stages = dict[str, Affine | Demons | Variational]  # by their names
KINDS: dict[str, Stages] = {
    "rigid": {"rigid": Rigid()},
    "similarity": {"similarity": Similarity()},
    "affine": {"affine": Affine()},
    "demons": {"affine": Affine(), "demons": Demons(form="displacement")},
    "velocity": {"affine": Affine(), "velocity": Demons()},
    "bspline": {"affine": Affine(), "bspline": BSpline()},
    "variational": {"affine": Affine(), "variational": Variational()},
}
SIMILARITIES: dict[str, Any] = {"ncc": NCC(), "lncc": LNCC(), "ssd": SSD(), "mi": MutualInformation()}


@dataclass(frozen=True)
class Order:
    """What is asked for: files to read, how to register, and files to write; see `torchimplicit register --help`."""

    fixed: Path
    moving: Path
    kind: str = "velocity"
    similarity: str | None = None
    initial: str = "world"
    max_steps: int | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    labels: Path | None = None
    fixed_labels: Path | None = None
    out: Path | None = None
    out_labels: Path | None = None
    field: Path | None = None
    inverse: Path | None = None
    transform: Path | None = None
    report: Path | None = None

    @property
    def from_field(self) -> bool:
        """Whether it starts from a displacement in a file, not from a place or a linear transform."""
        return self.initial.lower().endswith(VOLUMES)

    def stages(self) -> Stages:
        """What to find, one after another; a field to start from has a linear part of its own.

        Raises:
            UsageError: the last stage does not know the similarity.
        """
        kinds = KINDS[self.kind]
        *_, last = kinds
        found = dict(kinds)
        if self.similarity is not None:
            compared = {name: _comparing(kind, self.similarity) for name, kind in kinds.items()}
            found |= {name: kind for name, kind in compared.items() if kind is not None}
            if compared[last] is None:
                known = [name for name in SIMILARITIES if _comparing(kinds[last], name) is not None]
                raise UsageError(
                    f"--similarity {self.similarity}: --kind {self.kind} compares by one of {', '.join(known)}. "
                    "Images of different kinds, such as CT and MR, go by --kind rigid --similarity mi."
                )
        return {last: found[last]} if self.from_field else found

    def check(self) -> None:
        """Refuses what cannot be, before anything is read.

        Raises:
            UsageError: says what was given and what is expected.
        """
        if self.kind not in KINDS:
            raise UsageError(f"--kind {self.kind}: expected one of {', '.join(KINDS)}.")
        if self.similarity is not None and self.similarity not in SIMILARITIES:
            raise UsageError(f"--similarity {self.similarity}: expected one of {', '.join(SIMILARITIES)}.")
        *_, last = self.stages().values()
        if self.from_field and isinstance(last, Affine):
            raise UsageError(f"--initial {self.initial}: --kind {self.kind} is linear and starts from a .tfm or .txt.")
        if self.max_steps is not None and self.max_steps < 1:
            raise UsageError(f"--max-steps {self.max_steps}: expected a number >= 1.")
        flat = is_picture(self.fixed)
        if flat != is_picture(self.moving):
            raise UsageError(
                f"{self.fixed}, {self.moving}: got a picture and a volume, expected two of as many dimensions."
            )
        self._check_files(PICTURES if flat else VOLUMES)

    def _check_files(self, endings: tuple[str, ...]) -> None:
        for name, path, expected in (
            ("--out", self.out, endings),
            ("--out-labels", self.out_labels, endings),
            ("--field", self.field, VOLUMES),
            ("--inverse", self.inverse, VOLUMES),
            ("--transform", self.transform, (".tfm", ".txt")),
            ("--report", self.report, (".html", ".htm")),
        ):
            if path is not None and not path.name.lower().endswith(expected):
                raise UsageError(f"{name} {path}: expected a name that ends in {' or '.join(expected)}.")
        for name, path, need in (
            ("--fixed-labels", self.fixed_labels, self.labels),
            ("--out-labels", self.out_labels, self.labels),
        ):
            if path is not None and need is None:
                raise UsageError(f"{name} {path}: expected --labels, those of the moving image, beside it.")
        *_, last = KINDS[self.kind].values()
        if self.transform is not None and not isinstance(last, Affine):
            raise UsageError(f"--transform {self.transform}: --kind {self.kind} is no linear transform. Try --field.")


def _comparing(kind: Any, similarity: str) -> Any:
    """A stage that compares images otherwise; None where it does not know how."""
    try:
        return replace(kind, similarity=SIMILARITIES[similarity])
    except ValueError:
        return None

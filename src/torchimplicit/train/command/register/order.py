"""What is asked for of `torchimplicit register`, refused before anything is read where it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchimplicit.imaging.register import Affine, Demons, Rigid, Similarity
from torchimplicit.train.command.register.volumes import PICTURES, VOLUMES, is_picture
from torchimplicit.train.errors import UsageError

KINDS: dict[str, dict[str, Affine | Demons]] = {  # stages by their names
    "rigid": {"rigid": Rigid()},
    "similarity": {"similarity": Similarity()},
    "affine": {"affine": Affine()},
    "demons": {"affine": Affine(), "demons": Demons(form="displacement")},
    "velocity": {"affine": Affine(), "velocity": Demons()},
}


@dataclass(frozen=True)
class Order:
    """What is asked for: files to read, how to register, and files to write; see `torchimplicit register --help`."""

    fixed: Path
    moving: Path
    kind: str = "velocity"
    initial: str = "world"
    max_steps: int | None = None
    labels: Path | None = None
    fixed_labels: Path | None = None
    out: Path | None = None
    out_labels: Path | None = None
    field: Path | None = None
    inverse: Path | None = None
    transform: Path | None = None
    report: Path | None = None

    def check(self) -> None:
        """Refuses what cannot be, before anything is read.

        Raises:
            UsageError: says what was given and what is expected.
        """
        if self.kind not in KINDS:
            raise UsageError(f"--kind {self.kind}: expected one of {', '.join(KINDS)}.")
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

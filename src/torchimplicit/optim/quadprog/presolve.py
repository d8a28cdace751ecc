"""What is done to programs before they are solved whatever their rank: no row twice, and units of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.repeats import Repeats
from torchimplicit.optim.quadprog.units import Units


@dataclass(frozen=True)
class Presolved:
    """Programs without repeated rows, in units in which all is about one.

    Attributes:
        program: the programs.
        units: theirs.
        repeats: the rows that were left out; None without such.
    """

    program: Program
    units: Units
    repeats: Repeats | None

    @staticmethod
    def of(stated: Program) -> Presolved:
        """Presolves programs."""
        program, repeats = Repeats.merged(stated)
        units = Units.of(program)
        return Presolved(units.scaled(program), units, repeats)

    def take(self, index: Tensor) -> Presolved:
        """Some of the programs."""
        repeats = None if self.repeats is None else self.repeats.take(index)
        return Presolved(self.program.take(index), self.units.take(index), repeats)

    def possible(self, active: Tensor) -> Tensor:
        """The bounds of a guess that there are."""
        return torch.where(self.program.target(active).isfinite(), active, 0)

    def stated(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Solution and multipliers of the stated programs."""
        y = y * self.units.y
        return z * self.units.z, y if self.repeats is None else self.repeats.apart(y, scaled=True)

    def active(self, active: Tensor) -> Tensor:
        """Which bounds the stated rows meet."""
        return active if self.repeats is None else self.repeats.apart(active, scaled=False)

    def alike(self, on: Tensor) -> Tensor:
        """Which of the stated rows are one of these or its repetition, bool `(B, r)`."""
        return on if self.repeats is None else self.repeats.alike(on)

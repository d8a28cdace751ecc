"""What programs need before they are solved: no equation twice, units of about one, no rounding in the curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import independent_rows
from torchimplicit.optim.quadprog.program import Program, largest
from torchimplicit.optim.quadprog.saddle import factor

_DEPENDENT = 1e-10
_NEGATIVE = 1e-9


def without_redundant(program: Program) -> Program:
    """The programs with equations that depend on others made `0 z = 0`."""
    p = program.equalities
    if p < 2:
        return program
    rows = program.rows[:, :p]
    length = rows.norm(dim=2)
    unit = rows / length.clamp_min(torch.finfo(rows.dtype).tiny).unsqueeze(2)
    lower, sound = factor(unit @ unit.mT)
    weak = ~sound | (lower.diagonal(dim1=1, dim2=2).amin(1).square() < _DEPENDENT)
    if not bool(weak.any()):
        return program
    kept = torch.ones_like(program.lower, dtype=torch.bool)
    index = torch.nonzero(weak).flatten()
    kept[index, :p] = independent_rows(rows[index], torch.ones_like(kept[index, :p]))
    lower, upper = (torch.where(kept, bound, 0.0) for bound in (program.lower, program.upper))
    return Program(program.Q, program.q, program.rows * kept.unsqueeze(2), lower, upper, p)


@dataclass(frozen=True)
class Units:
    r"""With $z = \sigma \hat z$, rows over their lengths and the objective over $\sigma^2 \tau$, all is about one.

    Attributes:
        length: of the rows, `(B, r)`.
        z: $\sigma$, `(B, 1)`.
        objective: $\tau$, `(B, 1)`.
    """

    length: Tensor
    z: Tensor
    objective: Tensor

    @staticmethod
    def of(program: Program) -> Units:
        """Chooses them."""
        length = program.rows.norm(dim=2)
        length = torch.where(length > 0, length, 1.0)
        bounds = (torch.where(bound.isfinite(), bound / length, 0.0) for bound in (program.lower, program.upper))
        size = torch.maximum(*(largest(bound) for bound in bounds)).unsqueeze(1)
        size = torch.where(size > 0, size, 1.0)
        objective = torch.maximum(program.Q.abs().amax((1, 2)), largest(program.q) / size.squeeze(1)).unsqueeze(1)
        return Units(length, size, torch.where(objective > 0, objective, 1.0))

    @property
    def y(self) -> Tensor:
        """What multipliers are multiplied by, `(B, r)`."""
        return self.z * self.objective / self.length

    def scaled(self, program: Program) -> Program:
        """The programs in these units."""
        bound = self.length * self.z
        return Program(
            program.Q / self.objective.unsqueeze(2), program.q / (self.z * self.objective),
            program.rows / self.length.unsqueeze(2), program.lower / bound, program.upper / bound, program.equalities,
        )  # fmt: skip


def convexified(Q: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Which matrices have no negative eigenvalue beyond rounding, `(B,)`; and all, those without what is rounding.

    Args:
        Q: `(B, n, n)`.
        rounding: of the dtype that they came in; 0 for double precision, whose own is left as it is.
    """
    size = Q.abs().amax((1, 2))
    if not bool(size.any()):
        return size == 0, Q
    lowest = torch.linalg.eigvalsh(Q)[:, 0]
    convex = lowest >= -max(_NEGATIVE, 4 * Q.shape[1] * rounding) * size
    if not rounding:
        return convex, Q
    return convex, Q + torch.diag_embed((convex * -lowest.clamp(max=0)).unsqueeze(1).expand(-1, Q.shape[1]))

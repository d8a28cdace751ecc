"""How a solve may end for one sample, and what to try then."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Status(IntEnum):
    """How a solve ended, for one sample."""

    CONVERGED = 0
    MAX_STEPS = 1
    STAGNATED = 2
    DIVERGED = 3
    NON_FINITE = 4
    STEP_TOO_SMALL = 5
    DRIFTED = 6
    INFEASIBLE = 7
    UNBOUNDED = 8
    NONCONVEX = 9
    SADDLE = 10
    COUPLED = 11

    def where(self, mask: Tensor, others: Tensor | Status) -> Tensor:
        """Statuses `(B,)`: this one where the mask holds, and those of the others, or another one, elsewhere.

        torch takes a plain integer in half the time that a member of an enumeration takes.
        """
        return torch.where(mask, int(self), others if isinstance(others, Tensor) else int(others))

    def unless(self, mask: Tensor, others: Tensor) -> Tensor:
        """Statuses `(B,)`: those of the others where the mask holds, this one elsewhere."""
        return torch.where(mask, others, int(self))


class Remedy(NamedTuple):
    """What a status means, and what turns it into success. Every try is shown to help by a case in the tests.

    Attributes:
        cause: what happened, in sentences; "" where the status says it all.
        tries: what to try, each on its own; none where only a look at the inputs helps.
    """

    cause: str
    tries: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Cause and tries as a text."""
        if not self.tries:
            return self.cause
        *others, last = self.tries
        return f"{self.cause} Try {', '.join(others) + ', or ' if others else ''}{last}.".strip()


COUPLED = Remedy(
    "The samples are not independent: what one is given depends on the others (features in dimension 0, batch "
    "normalisation in training, any statistic over the batch).",
    (
        "batch_dims=0 for one coupled problem",
        "z0[None] and x[None] for one sample",
        "eval(), GroupNorm or LayerNorm in place of batch statistics",
    ),
)

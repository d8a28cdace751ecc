"""Unknowns that run off: a step is short beside them because they are large, and all is flat where they have got to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.solve.ahead import Ahead
from torchimplicit.solve.look import Claim

UNFALLEN = 0.5  # part of the highest residual that has not fallen
FARTHER = 2.0  # so many times its start an unknown has run off where it has no influence any more


class Ran(NamedTuple):
    """How far samples that failed have run, for whoever goes on from where they ended; `(B, n)` each; see `Claims`.

    Without it a sample that has run off would be judged as one that starts where all is flat.
    """

    failed: Tensor  # (B,) bool
    start: Tensor
    usual: Tensor
    largest: Tensor
    highest: Tensor

    def goes_on(self, start: Tensor, usual: Tensor, largest: Tensor, highest: Tensor) -> tuple[Tensor, ...]:
        """The same four for the next solve, from what they are at its start.

        Where an unknown began is taken over of whoever has failed; its largest size only where it still is about there.
        Beside a size that it has no more, as where the kept iterate is from before it ran or on its way, every step
        would be short.
        """
        first, size, most, worst = (part.to(start) for part in self[1:])
        still = self.failed.unsqueeze(1) & (FARTHER * start.abs() >= most)
        out, failed = still.any(1, keepdim=True), self.failed.unsqueeze(1)
        return (
            torch.where(failed, first, start),
            torch.where(failed, size, usual),
            torch.where(still, torch.maximum(most, largest), largest),
            torch.where(out, torch.maximum(worst, highest), highest),
        )


def has_run_off(claim: Claim, ahead: Ahead, start: Tensor, usual: Tensor, rtol: float, eps: float) -> Tensor:
    """Which claims are of places where unknowns have run to, and no solutions, `(B,)` bool.

    Args:
        claim: the iterates.
        ahead: the Newton step from there.
        start: where the unknowns began, `(B, n)`.
        usual: their sizes there or after a step, `(B, n)`.
        rtol: that of the solve.
        eps: of the dtype.
    """
    z, largest = claim.z.detach(), claim.largest
    # A step may be short by the size of what has run off alone: where the residual wiggles and never falls.
    high = (claim.residual.abs() > UNFALLEN * claim.highest).all(1, keepdim=True)
    lost = high & (max(rtol, eps**0.5) * largest > torch.where(start == 0, usual, start.abs()))
    if ahead.singular is not None and ahead.blind is not None and ahead.faint is not None:  # where it has no influence
        lost = lost | (ahead.blind & (z != start))
        underflown = ahead.faint & (claim.residual == 0).all(1, keepdim=True)
        lost = lost | (underflown & (largest > FARTHER * start.abs()))
        lost = lost | (ahead.singular.unsqueeze(1) & (eps * largest > usual))
    return (lost & (FARTHER * z.abs() >= largest)).any(1)  # a search may have come back a little


def advice(away: Tensor, largest: Tensor) -> str:
    """What to say of samples `(B,)` that still run off, with the largest values of their unknowns, `(B, n)`."""
    listed = ", ".join(map(str, torch.nonzero(away).flatten().tolist()[:5]))
    return (
        f"The unknowns of sample {listed} still grow (up to {float(largest[away].max()):.1e}) while the residual or "
        "the energy falls: there may be no root or minimum but at infinity, as with exp(-z), or with separable data "
        "that nothing regularises; else try more max_steps, or a start nearby."
    )

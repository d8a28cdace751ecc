"""Claims of convergence that wait to be looked at together: a look takes the Jacobians of a whole batch.

A sample whose claim waits goes on as if that had been refused. What is granted is the iterate that was claimed; what is
refused is followed by the claims that the sample would have made since. So whatever its mates do, it makes the same
claims, and has the same value, status and steps, as alone.
"""

from __future__ import annotations

import copy

from torch import Tensor

from torchimplicit.solve.look import Claim


class Docket:
    """What is claimed and not looked at yet.

    Args:
        waits: steps for which a claim may wait at most.
        nobody: false for every sample, `(B,)`.

    Attributes:
        waiting: who has made a claim that waits, `(B,)` bool.
        claims: of every sample the first one that waits; None without any.
    """

    def __init__(self, waits: int, nobody: Tensor):
        """Empty."""
        self.waits, self.nobody = waits, nobody
        self.clear()

    def clear(self) -> None:
        """All has been looked at."""
        self.waiting, self.claims, self.since = self.nobody, None, 0
        self.trail: list[tuple[Claim, Tensor]] = []

    def add(self, claim: Claim, step: int, asks: Tensor) -> None:
        """Samples claim that they have arrived by this step."""
        if self.claims is None:
            self.claims, self.since = claim, step
        else:
            self.claims = self.claims.where(self.waiting, claim)
        self.waiting = self.waiting | asks

    def follow(self, claim: Claim, may: Tensor) -> None:
        """Notes where samples are a step later, and which may claim there if their step is as short as they need."""
        if self.claims is not None:
            self.trail.append((claim, may))

    def is_due(self, step: int, running: Tensor) -> bool:
        """Whether claims, of which there are some, must not wait any longer, or no sample is left to wait for."""
        return step - self.since >= self.waits or not bool((running & ~self.waiting).any())

    def again(self, claims: Claim, refused: Tensor, target: Tensor) -> tuple[Claim, Tensor]:
        """The next claims of samples that are refused, as far as they have gone on, and who makes some.

        Args:
            claims: those that are refused.
            refused: who is, `(B,)` bool.
            target: how short a step must be now, `(B,)`.
        """
        found, who = claims, self.nobody
        for later, may in reversed(self.trail):
            makes = refused & may & (later.step > claims.step) & (later.move <= target)
            found, who = later.where(makes, found), who | makes
        return found, who

    def take(self, rows: Tensor) -> Docket:
        """That of some samples."""
        some = copy.copy(self)
        some.nobody, some.waiting = self.nobody[rows], self.waiting[rows]
        some.claims = None if self.claims is None else self.claims.take(rows)
        some.trail = [(claim.take(rows), may[rows]) for claim, may in self.trail]
        return some

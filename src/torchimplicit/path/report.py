"""How a path was solved, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from torchimplicit.core.status import Remedy, Report, Status

PATHS = {
    Status.MAX_STEPS: Remedy(
        "The steps were used up on the way: a stiff field under an explicit solver takes steps that stability limits.",
        ("a stiff solver, such as ESDIRK54()", "more max_steps", "a looser rtol or atol"),
    ),
    Status.STEP_TOO_SMALL: Remedy(
        "The error stayed above its tolerance down to the smallest step: the solution may blow up there, the field may "
        "jump there, the tolerance may lie below what this dtype can reach, the steps may be below the rounding of the "
        "times (128 for seconds since 1970 in float32), or dt_min may be too large. Implicit steps up to a blow-up "
        "that are not found again add nothing to the gradients.",
        (
            "jumps=... with the times at which the field jumps",
            "a looser rtol or atol",
            "float64",
            "times in float64",
            "a smaller dt_min",
        ),
    ),
    Status.NON_FINITE: Remedy(
        "The field gave NaN or infinity however small the step, or the event's condition did at the end: look for them "
        "in the inputs, else for a singularity or a blow-up there. Such a sample is held at its last finite state and "
        "adds nothing to the gradients."
    ),
    Status.DRIFTED: Remedy(
        "The path that was integrated backward does not meet the one that was integrated forward, or the two states of "
        "Reversible() have parted: the field contracts. Or a step that was made again leads elsewhere: the field is "
        "another one at every evaluation, such as dropout.",
        (
            "random numbers drawn before the solve and passed as an argument",
            "Checkpointed(), which is exact for the steps taken",
            "Backsolve(checkpoints=...) with more states on the way",
            "a smaller coupling",
        ),
    ),
    Status.COUPLED: Remedy(
        "The samples are not independent: the slope of one depends on the states of others (batch normalisation in "
        "training, any statistic over the batch), and steps of their own do not solve that.",
        (
            'stepping="joint", one step size for one coupled system',
            "eval(), GroupNorm or LayerNorm for batch statistics",
        ),
    ),
}
GIVEN_STEPS = PATHS | {
    Status.MAX_STEPS: Remedy(
        "The steps were used up on the way: of the size that was given, it takes more of them.",
        ("a larger dt", "more max_steps", "a solver that chooses its steps, such as Tsit5()"),
    ),
    Status.STEP_TOO_SMALL: Remedy(
        "A step of the size that was given cannot be made, and no other is tried: its stage equations were not solved, "
        "for it is too long, or the solution blows up or the field jumps there; or it is below the rounding of the "
        "times (128 for seconds since 1970 in float32). Implicit steps up to a blow-up that are not found again add "
        "nothing to the gradients.",
        (
            "a smaller dt for stage equations",
            "control=PID() for steps that the solver chooses",
            "a larger dt for the rounding",
            "times in float64",
        ),
    ),
    Status.NON_FINITE: Remedy(
        "The field gave NaN or infinity on a step of the size that was given, or the event's condition did at the end: "
        "look for them in the inputs, else for a singularity or a blow-up there; or the step is too long for an "
        "explicit solver to be stable. Such a sample is held at its last finite state and adds nothing to the "
        "gradients.",
        ("a smaller dt", "a stiff solver, such as ESDIRK54()"),
    ),
}
NO_GRADIENT = {
    Status.NON_FINITE: Remedy(
        "The incoming gradient is not finite, or the field's Jacobian on this path is not. Such a sample adds nothing "
        "to the gradients."
    ),
}
BACKWARD_SOLVES, BACKWARD_STEPS = PATHS | NO_GRADIENT, GIVEN_STEPS | NO_GRADIENT

Tables = tuple[dict[Status, Remedy], dict[Status, Remedy]]  # of steps that were chosen, and of others


@dataclass
class PathReport(Report):
    """A `Report` of a path. Its `residual` is the largest error of an accepted step over its tolerance.

    Attributes:
        accepted: accepted steps per sample, int64 `(B,)`.
        rejected: rejected steps per sample, int64 `(B,)`.
        reached: the time that each sample reached, `(B,)`.
        event: which event, by its place, ended each sample's solve, int64 `(B,)`; -1 for none, None without events.
        adapts: whether the steps were chosen by their error.
        kept: of how many steps the graphs are kept for a gradient; the others are made again for it.
        table_given: what to try where they were not.
        tables_back: both tables, of backward passes.
    """

    failure: ClassVar[str] = "did not reach the last time"
    table = PATHS
    table_given: ClassVar[dict[Status, Remedy]] = GIVEN_STEPS
    tables_back: ClassVar[Tables] = (BACKWARD_SOLVES, BACKWARD_STEPS)

    accepted: Tensor = field(kw_only=True)
    rejected: Tensor = field(kw_only=True)
    reached: Tensor = field(kw_only=True)
    event: Tensor | None = field(default=None, kw_only=True)
    adapts: bool = field(kw_only=True, repr=False)
    kept: int = field(default=0, kw_only=True)

    @property
    def fired(self) -> Tensor | None:
        """Which samples' solves an event ended, bool `(B,)`; None without events."""
        return None if self.event is None else self.event >= 0

    @property
    def remedies(self) -> dict[Status, str]:
        """See `Report.remedies`."""
        found = super().remedies
        return found if self.adapts else {status: str(self.table_given.get(status, "")) for status in found}

    def describe(self, sample: int) -> str:
        """See `Report.describe`."""
        return f"reached t = {float(self.reached[sample]):.6g} in {int(self.steps[sample])} steps"

    def __str__(self) -> str:
        """One line: how many arrived, in how many steps, after how many evaluations; the backward solve beside it."""
        batch = self.status.numel()
        if not batch:
            return f"{self.name}: an empty batch"
        text = (
            f"{self.name}: {batch - self.failed.numel()}/{batch} arrived, steps up to {int(self.accepted.max())} "
            f"accepted and {int(self.rejected.max())} rejected, {self.nfev} evaluations"
        )
        text = text if self.fired is None else f"{text}, the event of {int(self.fired.sum())}/{batch} fired"
        return text if self.backward is None else f"{text}; {self.backward}"

    def then(self, later: Self) -> Self:
        """Of a solve and of its going on; `later` is of the same samples, those that failed standing still."""
        failed = self.status != Status.CONVERGED
        event = self.event
        if event is not None and later.event is not None:
            event = torch.where(event >= 0, event, later.event)
        return replace(
            later, status=torch.where(failed, self.status, later.status), steps=self.steps + later.steps,
            residual=torch.maximum(self.residual, later.residual), nfev=self.nfev + later.nfev,
            accepted=self.accepted + later.accepted, rejected=self.rejected + later.rejected,
            reached=torch.where(failed, self.reached, later.reached), event=event,
            kept=self.kept + later.kept,
        )  # fmt: skip

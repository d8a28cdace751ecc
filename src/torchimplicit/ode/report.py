"""How a path was walked, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from torchimplicit.core.status import Report, Status

_REMEDIES = {
    Status.MAX_STEPS: (
        "The steps were used up on the way: a stiff field under an explicit solver takes steps that stability limits "
        "(try a stiff one, such as Kvaerno5()), or try more max_steps, or a looser rtol or atol."
    ),
    Status.STEP_TOO_SMALL: (
        "The error stayed above its tolerance down to the smallest step: the solution may blow up there, the field may "
        "jump there (try an output time at the jump), the tolerance may lie below what this dtype can reach (try a "
        "looser rtol or atol, or float64), or dt_min may be too large."
    ),
    Status.NON_FINITE: (
        "The field gave NaN or infinity however small the step: look for them in the inputs, else for a singularity "
        "or a blow-up there. Such a sample is held at its last finite state and adds nothing to the gradients."
    ),
    Status.DRIFTED: (
        "The path that was walked back does not meet the path that was walked forward, so the gradient is not to be "
        "trusted. Try Checkpointed(), which is exact for the steps taken, or a tighter rtol and atol."
    ),
    Status.DIVERGED: "An implicit step's equation was not solved. Try smaller steps or a looser tolerance.",
}


@dataclass
class PathReport(Report):
    """A `Report` of a path. Its `residual` is the largest error of an accepted step over its tolerance.

    Attributes:
        accepted: accepted steps per sample, int64 `(B,)`.
        rejected: rejected steps per sample, int64 `(B,)`.
        reached: the time that each sample reached, `(B,)`.
    """

    failure: ClassVar[str] = "did not reach the last time"

    accepted: Tensor = field(kw_only=True)
    rejected: Tensor = field(kw_only=True)
    reached: Tensor = field(kw_only=True)

    @property
    def remedies(self) -> dict[Status, str]:
        """See `Report.remedies`."""
        return {status: remedy for status, remedy in _REMEDIES.items() if bool((self.status == status).any())}

    def describe(self, sample: int) -> str:
        """See `Report.describe`."""
        return f"reached t = {float(self.reached[sample]):.6g} in {int(self.steps[sample])} steps"

    def __str__(self) -> str:
        """One line: how many arrived, in how many steps, after how many evaluations; the backward solve beside it."""
        batch = self.status.numel()
        text = (
            f"{self.name}: {batch - self.failed.numel()}/{batch} arrived, steps up to {int(self.accepted.max())} "
            f"accepted and {int(self.rejected.max())} rejected, {self.nfev} evaluations"
        )
        return text if self.backward is None else f"{text}; {self.backward}"

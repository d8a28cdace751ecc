"""How samples were drawn, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import Tensor

from torchimplicit.core.status import Remedy, Status
from torchimplicit.path.report import GIVEN_STEPS, PATHS, PathReport, Tables
from torchimplicit.sde.seeds import Seed

_BROKEN = Remedy(
    "The network gave NaN or infinity, or the sample ran away: look for them in the network's weights and in what it "
    "is conditioned on. Such a sample is held at its last finite state, and no other one feels it."
)
_GUIDED = Remedy(
    "The equations of the guidance were not solved at some level, so that such a sample agrees with its measurement "
    "less than it should: without noise they may have no solution.",
    ("std=... of the noise, above 0",),
)
_OURS = {Status.NON_FINITE: _BROKEN, Status.STAGNATED: _GUIDED}
GIVEN, CHOSEN = GIVEN_STEPS | _OURS, PATHS | _OURS  # steps of a grid, steps that are chosen


@dataclass
class SamplingReport(PathReport):
    """A `PathReport` of samples on their way from noise; `nfev` counts evaluations of the network.

    Attributes:
        seed: what repeats the samples, with the same sampler: `model.sample(count, sampler, seed=report.seed)`.
        unsolved: what was left of the equations of a `Guidance`, the largest at any noise level, over their right-hand
            side, `(B,)`: 0 where they have a closed form; None without one.
    """

    failure: ClassVar[str] = "did not reach the least noise"
    table = CHOSEN
    table_given: ClassVar[dict[Status, Remedy]] = GIVEN
    tables_back: ClassVar[Tables] = PathReport.tables_back

    seed: Seed = field(kw_only=True, repr=False)
    unsolved: Tensor | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    def of(cls, report: PathReport, seed: Seed) -> Self:
        """The report of a path in `-log s` as one of samples."""
        return cls(
            report.status, report.steps, report.residual, report.nfev, "sample", accepted=report.accepted,
            rejected=report.rejected, reached=(-report.reached).exp(), adapts=report.adapts, seed=seed,
        )  # fmt: skip

    def describe(self, sample: int) -> str:
        """See `Report.describe`."""
        return f"reached noise level {float(self.reached[sample]):.3g} in {int(self.steps[sample])} steps"

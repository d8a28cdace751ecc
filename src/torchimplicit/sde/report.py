"""How a stochastic path was solved, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torchimplicit.core.status import Remedy, Status
from torchimplicit.path.report import PathReport
from torchimplicit.sde.seeds import Seed

STEPS = {
    Status.MAX_STEPS: Remedy(
        "The steps were used up on the way: of the size that was given, it takes more of them.",
        ("a larger dt", "more max_steps"),
    ),
    Status.STEP_TOO_SMALL: Remedy(
        "A step of the size that was given is below the rounding of the times.",
        ("a larger dt", "times in float64"),
    ),
    Status.NON_FINITE: Remedy(
        "Drift or diffusion gave NaN or infinity, or the path ran away: look for them in the inputs, else the step is "
        "too long for the solver to be stable, or the equation blows up. Such a sample is held at its last finite "
        "state and adds nothing to the gradients.",
        ("a smaller dt",),
    ),
    Status.COUPLED: Remedy(
        "The samples are not independent: the drift or the diffusion of one depends on the states of others (batch "
        "normalisation in training, any statistic over the batch).",
        ("eval(), GroupNorm or LayerNorm for batch statistics",),
    ),
}

ADAPTIVE = {
    Status.MAX_STEPS: Remedy(
        "The steps were used up on the way: noise makes a path rough, and the tolerance asks for many.",
        ("more max_steps", "a looser rtol or atol"),
    ),
    Status.STEP_TOO_SMALL: Remedy(
        "The error stayed above its tolerance down to the smallest step: drift or diffusion may jump there, the path "
        "may blow up, the tolerance may lie below what this dtype can reach, or dt_min may be too large.",
        ("a looser rtol or atol", "a smaller dt_min"),
    ),
    Status.NON_FINITE: Remedy(
        "Drift or diffusion gave NaN or infinity however small the step: look for them in the inputs, else for a "
        "singularity or a blow-up there. Such a sample is held at its last finite state and adds nothing to the "
        "gradients."
    ),
    Status.COUPLED: STEPS[Status.COUPLED],
}


@dataclass
class StochasticReport(PathReport):
    """A `PathReport` of a stochastic path, whose evaluations are of the drift and of the diffusion, one each.

    Attributes:
        seed: what repeats the noise, with the same solver and times: `brownian=report.seed`.
    """

    table = ADAPTIVE
    table_given: ClassVar[dict[Status, Remedy]] = STEPS

    seed: Seed = field(kw_only=True, repr=False)

"""How a stochastic path was solved, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torchimplicit.core.status import Remedy, Status
from torchimplicit.path.report import NO_GRADIENT, PathReport, Tables
from torchimplicit.sde.diffusion import NoiseKind
from torchimplicit.sde.seeds import Seed
from torchimplicit.sde.structure import Structure

SAID: dict[NoiseKind, Structure] = {
    "additive": "additive", "scalar": "commuting", "diagonal": "commuting", "general": "general",
}  # fmt: skip

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
    Status.DRIFTED: Remedy(
        "The two states that Reversible() or ReversibleHeun() carry along have parted, for the drift contracts, or the "
        "steps that were taken back do not meet the start. Or a step that was made again leads elsewhere: drift or "
        "diffusion is another one at every evaluation, such as dropout.",
        (
            "random numbers drawn before the solve and passed as an argument",
            "Heun() with Checkpointed(), which carries one state",
            "a smaller coupling with Heun()",
            "a smaller dt",
        ),
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
    Status.DRIFTED: Remedy(
        "A step that was made again leads elsewhere: drift or diffusion is another one at every evaluation, such as "
        "dropout.",
        ("random numbers drawn before the solve and passed as an argument",),
    ),
    Status.COUPLED: STEPS[Status.COUPLED],
}


@dataclass
class StochasticReport(PathReport):
    """A `PathReport` of a stochastic path, whose evaluations are of the drift, the diffusion and the prior, one each.

    Attributes:
        seed: what repeats the noise, with the same solver and times: `brownian=report.seed`, or that source with it.
        noise: of which kind it was said to be.
        structure: what orders depend on: "additive"; "commuting", columns of the diffusion commute, which those of
            diagonal noise do where `g_i` depends on `y_i` alone; "general". What was said of the noise, but where the
            solver's order depends on it the diffusion is looked at, once, near the start: general noise is not
            believed to be worse than it is there, nor diagonal noise to be better.
        strong_order: that errors of paths have in the size of the steps, by solver and structure; None for steps that
            were chosen on the way.
    """

    table = ADAPTIVE
    table_given: ClassVar[dict[Status, Remedy]] = STEPS
    tables_back: ClassVar[Tables] = (ADAPTIVE | NO_GRADIENT, STEPS | NO_GRADIENT)

    seed: Seed = field(kw_only=True, repr=False)
    noise: NoiseKind = field(kw_only=True)
    structure: Structure = field(init=False)
    strong_order: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Believes what was said of the noise."""
        self.structure = SAID[self.noise]

    def __str__(self) -> str:
        """See `PathReport`; with the order to expect where noise is not what it was said to be."""
        if self.noise != "diagonal" or self.structure != "general":
            return super().__str__()
        return (
            f"{super().__str__()}; strong order {self.strong_order}: diagonal noise, but coefficients depend on other "
            "unknowns than their own"
        )

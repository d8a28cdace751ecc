"""How a solve for a point went, and what to try where it failed."""

from __future__ import annotations

from dataclasses import dataclass

from torchimplicit.core.outcome import COUPLED, Remedy, Status
from torchimplicit.core.status import Report

POINTS = {
    Status.MAX_STEPS: Remedy("", ("more max_steps", "a looser rtol or atol", "a more contractive map")),
    Status.STAGNATED: Remedy(
        "The residual no longer falls: the tolerance may lie below what this dtype can reach, the map may have no "
        "fixed point, it may be random (plain dropout inside it), or its residual may grow for long before it falls (a "
        "non-normal map).",
        ("a looser rtol or atol", "float64", "nn.VariationalDropout", "Newton()"),
    ),
    Status.DIVERGED: Remedy(
        "The map expands.", ("damping < 1", "Newton()", "spectral normalisation", "smaller weights")
    ),
    Status.NON_FINITE: Remedy(
        "NaN or infinity appeared: look for them in the inputs, else for overflow or a singular Jacobian. Such a "
        "sample is held at its last finite iterate and adds nothing to the gradients."
    ),
    Status.SADDLE: Remedy(
        "The gradient vanishes, but the energy falls to a side: a saddle or a maximum, to which Newton() goes as well "
        "as to a minimum, and LBFGS, NewtonCG, LevenbergMarquardt only from a start beside which nothing leads away.",
        (
            "another start",
            "a solver that goes down (LBFGS, NewtonCG) in place of Newton()",
            "check_minimum=False to accept any stationary point",
        ),
    ),
    Status.COUPLED: COUPLED,
}


@dataclass
class SolveReport(Report):
    """See `Report`."""

    table = POINTS

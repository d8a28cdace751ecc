"""How a solve may end for one sample, and what to try then."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


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
}
COUPLED = Remedy(
    "The samples are not independent: what one is given depends on the others (features in dimension 0, batch "
    "normalisation in training, any statistic over the batch).",
    (
        "batch_dims=0 for one coupled problem",
        "z0[None] and x[None] for one sample",
        "eval(), GroupNorm or LayerNorm in place of batch statistics",
    ),
)
LINEAR = {
    Status.MAX_STEPS: Remedy(
        "",
        ("GMRES with more max_steps", "GMRES with a longer restart", "a looser rtol", "LU() for a small state"),
    ),
    Status.STAGNATED: Remedy(
        "The system is singular or nearly so at this solution, the tolerance lies below what this dtype can reach, or "
        "the method does not suit it.",
        ("GMRES with a longer restart", "a looser rtol", "LU() for a small state"),
    ),
    Status.DIVERGED: Remedy(
        "The Neumann series grows, for the map does not contract; or the inverse that Shine took over explodes, and it "
        "took the Jacobian-free gradient instead.",
        ("Implicit(GMRES())",),
    ),
    Status.NON_FINITE: Remedy(
        "NaN or infinity appeared: the incoming gradient is not finite, or the Jacobian is singular or not finite at "
        "the solution. Such a sample adds nothing to the gradients."
    ),
    Status.COUPLED: COUPLED,
}
UNROLLED = LINEAR | {
    Status.MAX_STEPS: Remedy(
        "The derivative of the steps has not come to that of the solution, which it lags behind.",
        ("a solver with a smaller rtol and more max_steps", "Implicit()"),
    ),
}

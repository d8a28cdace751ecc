"""How a linear solve went, and what to try where it failed."""

from __future__ import annotations

from dataclasses import dataclass

from torchimplicit.core.outcome import COUPLED, Remedy, Status
from torchimplicit.core.status import Report

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


@dataclass
class LinearReport(Report):
    """See `Report`; its evaluations are products with the operator."""

    table = LINEAR
    linear: bool = True

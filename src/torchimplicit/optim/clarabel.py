"""Clarabel, a maintained interior-point solver for cone programs: how it is found, and what it says (extra `optim`)."""

from __future__ import annotations

from typing import Any

from torchimplicit.core.status import Status

STATUS = {
    "Solved": Status.CONVERGED,
    "AlmostSolved": Status.STAGNATED,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.MAX_STEPS,
    "MaxTime": Status.MAX_STEPS,
}


def import_clarabel(programs: str, otherwise: str = "") -> Any:
    """The solver, or an error that says which programs need it, how to install it, and what else to try."""
    try:
        import clarabel
    except ImportError as error:
        raise ImportError(
            f"{programs} are solved by Clarabel, which is not installed; try pip install torchimplicit[optim]"
            + otherwise
        ) from error
    return clarabel

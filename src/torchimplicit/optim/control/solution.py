"""What the public functions of control return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from torchimplicit.core.status import Remedy, Report, Solution, Status

PLANS = {
    Status.INFEASIBLE: Remedy(
        "From this first state no controls within their bounds keep the states within theirs.",
        ("looser state bounds", "a penalty in the cost in place of them", "another first state"),
    ),
    Status.NONCONVEX: Remedy(
        "The cost is not strictly convex in the controls: it has no minimum, or many.", ("a positive definite R",)
    ),
    Status.UNBOUNDED: Remedy("The cost falls for ever.", ("a positive definite R", "bounds on all controls")),
    Status.SADDLE: Remedy(
        "The slope vanishes, but the cost falls to a side or is flat: no minimum.",
        ("another u0 (not one where symmetry holds the system in place)", "more cost on controls"),
    ),
    Status.MAX_STEPS: Remedy(
        "The steps were used up on the way.",
        ("more max_steps", "a start closer to the plan (u0, warm_start)", "a shorter horizon", "smoother costs"),
    ),
    Status.STAGNATED: Remedy(
        "No part of the step lowers the cost any more: the tolerance may lie below what this dtype can reach, or "
        "dynamics or cost have a kink there (ReLU, abs, clamp).",
        ("a looser rtol", "float64", "smooth functions in place of those with a kink"),
    ),
    Status.NON_FINITE: Remedy(
        "NaN or infinity appeared: look for them in the arguments, else the start may lead the system away. Such a "
        "sample adds nothing to the gradients.",
        ("a better u0", "a shorter horizon"),
    ),
}


class ControlReport(Report):
    """A `Report` of plans. The residual of `ilqr` is that of `BoxDDP`; of `lqr` the slope by the controls."""

    failure: ClassVar[str] = "have no plan that could be vouched for"
    table = PLANS


@dataclass(frozen=True)
class ControlSolution(Solution):
    """A plan: controls, the states that they lead to, and what holds them.

    Attributes:
        value: controls, `(B, T, nu)`.
        report: see `Solution`, as for its fields.
        states: `(B, T + 1, nx)`, the first being `x0`.
        cost: of every sample's plan, `(B,)`.
        costates: the multipliers of the dynamics, `(B, T, nx)`: what it costs to move `x_{t+1}`.
        control_duals: the multipliers of the controls' bounds, `(B, T, nu)`: positive at an upper bound, negative at a
            lower one, zero between; None without such bounds (`lqr`).
        state_duals: those of the states' bounds, `(B, T, nx)`, for `x_1` to `x_T`; None without such bounds.
    """

    states: Tensor = field(kw_only=True, repr=False)
    cost: Tensor = field(kw_only=True, repr=False)
    costates: Tensor = field(kw_only=True, repr=False)
    control_duals: Tensor | None = field(default=None, repr=False)
    state_duals: Tensor | None = field(default=None, repr=False)

    @property
    def controls(self) -> Tensor:
        """The controls, `(B, T, nu)`; the same as `value`."""
        return self.value

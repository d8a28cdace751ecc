"""What a solved program reports beyond its solution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor

from torchimplicit.core.status import Remedy, Report, Solution, Status

PROGRAMS = {
    Status.INFEASIBLE: Remedy(
        "No point meets all its constraints; solution.certificate.duals has the weights with which they contradict "
        "(zero where some l > u).",
        ("closest_feasible=True for the program with the smallest change of bounds", "a looser h, b, l or u"),
    ),
    Status.UNBOUNDED: Remedy(
        "The objective falls for ever along solution.certificate.ray.", ("bounds on z", "a positive definite Q")
    ),
    Status.NONCONVEX: Remedy(
        "Q has a negative eigenvalue.", ("Q = L @ L.mT + 1e-4 * I", "a multiple of the identity added to it")
    ),
    Status.MAX_STEPS: Remedy(
        "Neither solved nor proved to be without a solution: all steps were taken, or what decides is very far out or "
        "very flat.",
        ("more max_steps where all were taken", "bounds on z"),
    ),
    Status.NON_FINITE: Remedy(
        "NaN or infinity in Q, q, or a constraint (missing bounds are infinite, nothing else). Such a program adds "
        "nothing to the gradients."
    ),
    Status.STAGNATED: Remedy(
        "The solution or its multipliers are not unique, so that the derivative asked for does not exist; the "
        "shortest least-squares one was taken.",
        ("smoothed=1e-3 for a linear program", "a multiple of the identity added to Q"),
    ),
}


class ProgramReport(Report):
    """A `Report` of quadratic or cone programs. Its `residual` is that of the Karush-Kuhn-Tucker conditions.

    Attributes:
        ambiguous: of a backward solve, whose derivatives by constraints and bounds are one of many, `(B,)`, as
            the multipliers are not unique; None where all are.
        by_clarabel: which programs were left to Clarabel in the end, bool `(B,)`; None for none.
    """

    failure: ClassVar[str] = "have no solution that could be vouched for"
    table = PROGRAMS
    ambiguous: Tensor | None = None
    by_clarabel: Tensor | None = None

    def __str__(self) -> str:
        """One line, with how many derivatives are the shortest of many."""
        text, count = super().__str__(), 0 if self.ambiguous is None else int(self.ambiguous.sum())
        return f"{text}, {count} of them one of many, as multipliers are not unique" if count else text

    @classmethod
    def of(cls, status: Tensor, steps: Tensor, residual: Tensor, by_clarabel: Tensor | None) -> ProgramReport:
        """Of quadratic programs, named after who solved them."""
        asked = 0 if by_clarabel is None else int(by_clarabel.sum())
        whom = "" if not asked else f" ({'' if asked == len(status) else f'{asked} of them '}by Clarabel)"
        report = cls(status, steps, residual, int(steps.sum()), f"quadratic program{whom}")
        report.by_clarabel = by_clarabel
        return report


class SmoothedReport(ProgramReport):
    """Of programs with a barrier left in, which are solved and differentiated as the root of their equations.

    Args:
        root: the report of that, which backward solves are told to.
        status: of the programs.
        steps: of the programs.
    """

    def __init__(self, root: Report, status: Tensor, steps: Tensor):
        """Keeps the root's report."""
        self.root = root
        super().__init__(status, steps, root.residual, root.nfev, "smoothed program")

    @property
    def backward(self) -> Report | None:
        """The report of the last backward solve; None until a backward pass has run."""
        return self.root.backward

    @backward.setter
    def backward(self, report: Report | None) -> None:
        self.root.backward = report


class Duals(NamedTuple):
    """Multipliers, differentiable like the solution.

    Attributes:
        inequality: of `G z <= h`, at least zero, `(B, m)`.
        equality: of `A z = b`, `(B, p)`.
        bounds: of `l <= C z <= u`, positive at the upper and negative at the lower bound, `(B, k)`.
    """

    inequality: Tensor
    equality: Tensor
    bounds: Tensor


class Determined(NamedTuple):
    """What the bounds that are met with a multiplier determine, and nothing else; nothing where there is no solution.

    Attributes:
        value: whether the solution is the only one, `(B,)`. Where not, only what all agree on has derivatives.
        duals: whether the multipliers are, `(B,)`. Where not, rows depend on each other; the solution's derivatives by
            constraints and bounds are then one of many.
    """

    value: Tensor
    duals: Tensor


class Certificate(NamedTuple):
    """Why a program has no solution.

    Attributes:
        duals: where infeasible, weights whose sum of constraints contradicts itself; zero elsewhere.
        ray: where unbounded, a direction along which the objective falls for ever; zero elsewhere, `(B, n)`.
    """

    duals: Duals
    ray: Tensor


@dataclass(frozen=True)
class QPSolution(Solution):
    """The solution of quadratic programs, `value` `(B, n)`.

    Attributes:
        duals: the multipliers.
        slack: `h - G z`, `(B, m)`; negative where `closest_feasible` had to move a bound.
        active: the bound that every constraint meets with a multiplier that is not zero: 1 the upper one, -1 the lower
            one, 0 none; `inequality` and `equality` are 0 or 1.
        determined: whether solution and multipliers are unique; the verdict on the solution itself is `status`.
        certificate: why programs have no solution; None when all have one.
    """

    duals: Duals = field(kw_only=True)
    slack: Tensor = field(kw_only=True)
    active: Duals = field(kw_only=True)
    determined: Determined = field(kw_only=True)
    certificate: Certificate | None = None

"""What a solve reports: a status per sample, a report, a solution, and the errors that carry them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

OnFailure = Literal["raise", "warn", "ignore"]


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


_REMEDIES = {
    Status.MAX_STEPS: "Try more max_steps, a looser rtol or atol, or a more contractive map.",
    Status.STAGNATED: (
        "The residual no longer falls: the tolerance may lie below what this dtype can reach (try a looser rtol or "
        "atol, or float64), the map may have no fixed point, it may be random (plain dropout inside it; try "
        "nn.VariationalDropout), or its residual "
        "may grow for long before it falls (a non-normal map: try Newton())."
    ),
    Status.DIVERGED: "The map expands. Try damping < 1, Newton(), spectral normalisation, or smaller weights.",
    Status.NON_FINITE: (
        "NaN or infinity appeared: look for them in the inputs, else for overflow or a singular Jacobian. Such a "
        "sample is held at its last finite iterate and adds nothing to the gradients."
    ),
    Status.SADDLE: (
        "The gradient vanishes, but the energy falls to a side: a saddle or a maximum, to which Newton() goes as well "
        "as to a minimum, and LBFGS, NewtonCG and LevenbergMarquardt only from a start beside which nothing leads "
        "away. Try another start, one of these in place of Newton(), or check_minimum=False to accept any stationary "
        "point."
    ),
}
INDEPENDENT = (
    "The samples are not independent: what one is given depends on the others (features in dimension 0, batch "
    "normalisation in training, any statistic over the batch). Try batch_dims=0 for one coupled problem, z0[None] and "
    "x[None] for one sample, or eval(), GroupNorm or LayerNorm in place of batch statistics."
)
_LINEAR_REMEDIES = {
    Status.MAX_STEPS: "Try GMRES with more max_steps, a longer restart or a looser rtol, or LU() for a small state.",
    Status.STAGNATED: (
        "The system is singular or nearly so at this solution, the tolerance lies below what this dtype can reach, or "
        "the method does not suit it. Try GMRES with a longer restart or a looser rtol, or LU() for a small state."
    ),
    Status.DIVERGED: (
        "The Neumann series grows, for the map does not contract; or the inverse that Shine took over explodes, and it "
        "took the Jacobian-free gradient instead. Try Implicit(GMRES())."
    ),
    Status.NON_FINITE: (
        "NaN or infinity appeared: the incoming gradient is not finite, or the Jacobian is singular or not finite at "
        "the solution. Such a sample adds nothing to the gradients."
    ),
    Status.COUPLED: INDEPENDENT,
}


@dataclass
class Report:
    """How a solve went, sample by sample. Holds no state and no graph, so it is safe to keep.

    Attributes:
        status: `Status` values, int64 `(B,)`.
        steps: steps that each sample took until it stopped, int64 `(B,)`.
        residual: RMS of the residual at the returned value, `(B,)`.
        nfev: evaluations of the function (forward) or products with the Jacobian (backward), for the whole batch.
        name: which solve this was, in words.
        linear: whether it was a linear solve, whose evaluations are products with the operator.
        trace: residual RMS at every step, `(steps + 1, B)`, NaN after a sample stopped; None unless asked for.
        backward: the report of the last backward solve; None until a backward pass has run.
        advice: what else to say of the failure, beyond the remedies.
        failure: what went wrong with a sample that failed, in words.
    """

    failure: ClassVar[str] = "did not converge"

    status: Tensor
    steps: Tensor
    residual: Tensor
    nfev: int
    name: str = "solve"
    linear: bool = False
    trace: Tensor | None = None
    backward: Report | None = field(default=None, repr=False)
    advice: str = field(default="", repr=False)

    @property
    def converged(self) -> bool:
        """Whether every sample converged."""
        return bool((self.status == Status.CONVERGED).all())

    @property
    def failed(self) -> Tensor:
        """Indices of the samples that did not converge, int64."""
        return torch.nonzero(self.status != Status.CONVERGED).flatten()

    @property
    def remedies(self) -> dict[Status, str]:
        """What to try, for every status other than `CONVERGED` that some sample ended with."""
        remedies = _LINEAR_REMEDIES if self.linear else _REMEDIES
        return {status: remedy for status, remedy in remedies.items() if bool((self.status == status).any())}

    def describe(self, sample: int) -> str:
        """Where one sample stands, in words."""
        return f"step {int(self.steps[sample])}, residual {float(self.residual[sample]):.2e}"

    def __str__(self) -> str:
        """One line: how many converged, in how many steps, to which residual; the backward solve beside it."""
        batch, unit = self.status.numel(), "products" if self.linear else "evaluations"
        if not batch:
            return f"{self.name}: an empty batch"
        text = (
            f"{self.name}: {batch - self.failed.numel()}/{batch} converged, steps up to {int(self.steps.max())}, "
            f"residual up to {float(self.residual.max()):.2e}, {self.nfev} {unit}"
        )
        return text if self.backward is None else f"{text}; {self.backward}"


@dataclass(frozen=True)
class Solution:
    """The value of an implicit function and how it was found.

    Attributes:
        value: the solution, nested and shaped like the initial state.
        report: the `Report`; its fields are also here as `status`, `steps`, `residual`, `nfev`, `trace`, `backward`.
        trajectory: the iterates after the steps `save_steps`, each like `value`, in that order.
        state: what the solver learnt beyond the solution (`Broyden`: its pairs), for a warm start; None for most.
    """

    value: Any
    report: Report
    trajectory: tuple = ()
    state: Any = field(default=None, repr=False)

    @property
    def status(self) -> Tensor:
        """`Status` values per sample, `(B,)`."""
        return self.report.status

    @property
    def steps(self) -> Tensor:
        """Steps per sample, `(B,)`."""
        return self.report.steps

    @property
    def residual(self) -> Tensor:
        """RMS of the residual per sample, `(B,)`."""
        return self.report.residual

    @property
    def nfev(self) -> int:
        """Evaluations of the function."""
        return self.report.nfev

    @property
    def trace(self) -> Tensor | None:
        """Residual RMS at every step, `(steps + 1, B)`; None unless `trace=True` was asked for."""
        return self.report.trace

    @property
    def backward(self) -> Report | None:
        """The report of the last backward solve through this value; None before one has run."""
        return self.report.backward


class ImplicitError(Exception):
    """Base of every error that this library raises on its own account."""


class CaptureError(ImplicitError, ValueError):
    """A function uses a tensor that requires grad and that it was not given as an argument."""


class ConvergenceError(ImplicitError, RuntimeError):
    """A solve did not converge for some samples.

    Attributes:
        report: how the solve went.
        solution: the `Solution` that was reached (None when the backward solve failed).
    """

    def __init__(self, message: str, report: Report, solution: Solution | None = None):
        """Carries the report and, for a forward solve, the solution."""
        super().__init__(message)
        self.report = report
        self.solution = solution

    def __reduce__(self) -> tuple:
        """Travels between processes without the solution, which may hold a graph."""
        return type(self), (str(self), self.report)


class ConvergenceWarning(UserWarning):
    """A solve did not converge for some samples; the message names them."""


def react(report: Report, on_failure: OnFailure, solution: Solution | None = None) -> None:
    """Raises, warns or stays silent about the samples that did not converge.

    Raises:
        ConvergenceError: a sample did not converge and `on_failure` is "raise".
    """
    if on_failure == "ignore" or report.converged:
        return
    message = failure_message(report)
    if on_failure == "raise":
        raise ConvergenceError(message, report, solution)
    warnings.warn(ConvergenceWarning(message), stacklevel=4)


def failure_message(report: Report, show: int = 5) -> str:
    """What happened, to which samples, after how many steps, with which residual, and what to try, in a few lines."""
    lines = [f"{report.name}: {report.failed.numel()} of {report.status.numel()} samples {report.failure}."]
    for status, remedy in report.remedies.items():
        samples = torch.nonzero(report.status == status).flatten().tolist()
        listed = ", ".join(f"sample {i} ({report.describe(i)})" for i in samples[:show])
        more = f" and {len(samples) - show} more" if len(samples) > show else ""
        lines += [f"  {status.name.lower()}: {listed}{more}.", f"    {remedy}"]
    return "\n".join([*lines, f"  {report.advice}"] if report.advice else lines)

"""What a solve reports: a status per sample, a report, a solution, and the errors that carry them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.failures import Counted, Failures, failures_under, warn
from torchimplicit.core.outcome import Remedy, Status

OnFailure = Literal["raise", "warn", "ignore"]


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
        distance: estimated RMS distance of the value from the solution, `(B,)`, of layers that estimate one; else None.
        bound: proved bound of the same, `(B,)`, infinite where none is; None of layers that know none.
        gap: proved bound of the energy's excess over its least value, `(B,)`; None of layers that know none.
        failure: what went wrong with a sample that failed, in words.
        table: what a family of solves says to try.
    """

    failure: ClassVar[str] = "did not converge"
    table: ClassVar[dict[Status, Remedy]] = {}

    status: Tensor
    steps: Tensor
    residual: Tensor
    nfev: int
    name: str = "solve"
    linear: bool = False
    trace: Tensor | None = None
    backward: Report | None = field(default=None, repr=False)
    advice: str = field(default="", repr=False)
    distance: Tensor | None = field(default=None, kw_only=True)
    bound: Tensor | None = field(default=None, repr=False, kw_only=True)
    gap: Tensor | None = field(default=None, repr=False, kw_only=True)
    _known: tuple[Tensor, int, bool] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def converged(self) -> bool:
        """Whether every sample converged. Asked about several times a solve; the host reads it once."""
        known, version = self._known, transforms.version(self.status)
        if known is None or known[0] is not self.status or known[1] != version:
            self._known = known = self.status, version, bool((self.status == Status.CONVERGED).all())
        return known[2]

    def note_convergence(self, seen: bool) -> None:
        """Notes that every sample was seen to converge, if so, which whoever asks then need not read."""
        self._known = (self.status, transforms.version(self.status), True) if seen else self._known

    @property
    def failed(self) -> Tensor:
        """Indices of the samples that did not converge, int64."""
        return torch.nonzero(self.status != Status.CONVERGED).flatten()

    @property
    def remedies(self) -> dict[Status, str]:
        """What to try, for every status other than `CONVERGED` that some sample ended with."""
        found = [status for status in Status if status and bool((self.status == status).any())]
        return {status: str(self.table.get(status, "")) for status in found}  # named, also where nothing is known

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
        if self.distance is not None:
            text += f", distance up to about {float(self.distance.max()):.2e}"
        if self.gap is not None:
            text += f", duality gap up to {float(self.gap.max()):.2e}"
        return text if self.backward is None else f"{text}; {self.backward}"


@dataclass(frozen=True)
class Solution:
    """The value of an implicit function and how it was found.

    Attributes:
        value: the solution, nested and shaped like the initial state.
        report: the `Report`; its fields are also here as `status`, `steps`, `residual`, `nfev`, `trace`, `backward`.
        trajectory: the iterates after the steps `save_steps`, each like `value`, in that order.
        state: what the solver learnt beyond the solution (`Broyden`: its pairs), for a warm start; None for most.
        ran: how far samples that failed have run, so that a warm start does not take them for solutions; else None.
    """

    value: Any
    report: Report
    trajectory: tuple = ()
    state: Any = field(default=None, repr=False)
    ran: Any = field(default=None, repr=False)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Nothing: where a tensor has it, says that the value is one."""
            hint = f"; try solution.value.{name}" if not name.startswith("_") and hasattr(Tensor, name) else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)

    def __getitem__(self, place: Any) -> NoReturn:
        """Nothing: a solution is not its value.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__}: got an index, or was taken apart, expected its fields by name; try "
            "solution.value, the state or states, and solution.report"
        )

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

    Warns of the first failure of a layer, or of a line that calls a function, forward and backward, then of the tenth
    of both, the hundredth, and so on.

    Raises:
        ConvergenceError: a sample did not converge and `on_failure` is "raise".
    """
    if on_failure == "ignore":
        return
    failures = on_failure.failures if isinstance(on_failure, Counted) else None
    if on_failure == "raise":
        if not report.converged:
            raise ConvergenceError(failure_message(report, failures), report, solution)
        return
    failures = failures_under(on_failure)
    kind = "backward" if report.name.startswith("backward") else "forward"
    told = failures.add(kind, not report.converged)
    if told:
        warn(ConvergenceWarning(f"{failure_message(report, failures)}\n  {told}"))


def failure_message(report: Report, failures: Failures | None = None, show: int = 5) -> str:
    """What happened, to which samples, after how many steps, with which residual, and what to try, in a few lines."""
    where = f", in {failures.owner}" if failures is not None and failures.owner else ""
    lines = [f"{report.name}: {report.failed.numel()} of {report.status.numel()} samples {report.failure}{where}."]
    for status, remedy in report.remedies.items():
        samples = torch.nonzero(report.status == status).flatten().tolist()
        listed = ", ".join(f"sample {i} ({report.describe(i)})" for i in samples[:show])
        more = f" and {len(samples) - show} more" if len(samples) > show else ""
        lines += [f"  {status.name.lower()}: {listed}{more}.", *([f"    {remedy}"] if remedy else [])]
    advice = [report.advice, "" if failures is None else failures.advice]
    return "\n".join([*lines, *(f"  {text}" for text in advice if text)])

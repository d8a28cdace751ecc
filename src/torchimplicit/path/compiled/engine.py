"""Who makes the steps of a solve: kernels where the user says so, or once enough time was spent without."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from torchimplicit.adjoint.products import Gradients
from torchimplicit.core.compiled.kernel import CompileError
from torchimplicit.core.compiled.worth import pays, spend
from torchimplicit.path.engine import Engine, Foreseen, PhaseBackward
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.record import Phase
from torchimplicit.path.report import PathReport
from torchimplicit.path.solver import PathSolver

T = TypeVar("T")


def chosen(compile: bool | str, f: Any, wins: bool, plain: Engine, kernels: Engine) -> Engine:
    """What makes the steps of a solve.

    Args:
        compile: what the user wants; "auto" as `odeint` tells it.
        f: the user's function.
        wins: whether kernels can make these steps, and are expected to be faster.
        plain: makes the steps without kernels.
        kernels: makes them with.
    """
    if compile is True:
        return kernels
    if compile is False:
        return plain
    return IfPossible(f, plain, kernels) if wins and pays(f) else Timed(f, plain)


class Delegating(Engine):
    """Leaves the steps to another engine.

    Args:
        plain: makes steps without kernels.
    """

    def __init__(self, plain: Engine):
        self._plain, self.looks = plain, plain.looks

    @property
    def plain(self) -> Engine:
        """See `Engine.plain`."""
        return self._plain

    def look(self, solver: PathSolver, field: Field, y0: Tensor, end: Tensor, ts: Tensor, report: PathReport) -> None:
        """See `Engine.look`."""
        self.plain.look(solver, field, y0, end, ts, report)

    def ahead(self, solver: PathSolver, ts: Tensor) -> Foreseen | None:
        """See `Engine.ahead`."""
        return self.plain.ahead(solver, ts)

    def loop(self, *args: Any) -> StepLoop:
        """See `Engine.loop`."""
        return self.plain.loop(*args)

    def backward(self, phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
        """See `Engine.backward`."""
        return self.plain.backward(phase, cotangent)


class Kernels(Delegating):
    """Makes steps by compiled kernels, several a call, as far as a subclass says; the others without."""

    keeps = False

    def forward(self, solve: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """See `Engine.forward`."""
        # Without this a kernel would be compiled once for parameters and once for tensors.
        return solve(self, [tensor.detach() for tensor in tensors])


class IfPossible(Delegating):
    """Makes steps by kernels, but without where the user's function cannot be compiled.

    Args:
        f: the user's function.
        plain: makes steps without kernels.
        kernels: makes them with.
    """

    def __init__(self, f: Any, plain: Engine, kernels: Engine):
        super().__init__(plain)
        self.f, self.kernels, self.pulls = f, kernels, kernels.pulls

    def forward(self, solve: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """See `Engine.forward`."""
        try:
            return self.kernels.forward(solve, tensors)
        except CompileError:
            spend(self.f, math.inf)
            return self.plain.forward(solve, tensors)

    def ahead(self, solver: PathSolver, ts: Tensor) -> Foreseen | None:
        """See `Engine.ahead`."""
        fused, plain = self.kernels.ahead(solver, ts), self.plain.ahead(solver, ts)

        def steps(field: Field, y: Tensor, phase: Phase | None) -> tuple[Tensor, int] | None:
            assert fused is not None
            assert plain is not None
            try:
                return fused(field, y, phase)
            except CompileError:
                spend(self.f, math.inf)
                return plain(field, y, phase)

        return plain if fused is None or plain is None else steps

    def backward(self, phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
        """See `Engine.backward`."""
        try:
            return self.kernels.backward(phase, cotangent)
        except CompileError:
            return self.plain.backward(phase, cotangent)


class Timed(Delegating):
    """Makes steps without kernels, and notes the time that is spent on it.

    Args:
        f: the user's function.
        plain: makes the steps.
    """

    def __init__(self, f: Any, plain: Engine):
        super().__init__(plain)
        self.f = f

    def forward(self, solve: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """See `Engine.forward`."""
        start = time.perf_counter()
        found = self.plain.forward(solve, tensors)
        spend(self.f, time.perf_counter() - start)
        return found

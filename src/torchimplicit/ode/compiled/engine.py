"""Who makes the steps of a solve: kernels where the user says so, or once enough time was spent without."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

from torchimplicit.adjoint.products import Gradients
from torchimplicit.ode.compiled.kernel import CompileError, can_compile, identity
from torchimplicit.ode.compiled.loop import ChunkedLoop, backward_in_chunks
from torchimplicit.path.engine import Engine, PhaseBackward
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.solver import PathSolver

T = TypeVar("T")

WORTH = 20.0  # seconds spent forward without kernels, about what compiling takes: so it never doubles the time
SMALL = 2**13  # numbers in a state up to which "auto" compiles; larger ones are not limited by the host

_seconds: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # spent on solves without a kernel; infinite: never again


def check_compile(compile: Any, solver: PathSolver, plain: bool) -> None:
    """Refuses to compile what cannot be.

    Args:
        compile: what the user wants.
        solver: the method.
        plain: whether this is a solve of nothing but output times.

    Raises:
        ValueError: neither a bool nor "auto"; or True for more than output times or another kind of solver.
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile: got {compile!r}, expected False, True or 'auto'")
    if compile is not True:
        return
    if not plain:
        raise ValueError(
            "compile: got True with jumps, an event, dense output or a callback, expected output times alone; "
            "try compile=False"
        )
    if not can_compile(solver):
        raise ValueError(
            f"compile: got True with {solver}, expected an explicit adaptive solver whose rtol and atol are numbers "
            "and whose controller looks at the last error alone; try Tsit5(), or compile=False"
        )


def choose_engine(compile: bool | str, f: Any, solver: PathSolver, size: int, plain: bool) -> Engine:
    """What makes the steps of a solve.

    Args:
        compile: what the user wants; "auto" as `odeint` tells it.
        f: the user's function.
        solver: the method.
        size: how many numbers the state has.
        plain: whether this is a solve of nothing but output times.
    """
    if compile is True:
        return Compiled()
    if compile is False:
        return Engine()
    spent = _seconds.get(identity(f), 0.0)
    wins = plain and can_compile(solver) and size <= SMALL and WORTH <= spent < math.inf
    return CompiledIfPossible(f) if wins else Timed(f)


class Compiled(Engine):
    """Makes steps by compiled kernels, several a call; one at a time where times want a gradient."""

    def forward(self, solve: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """See `Engine.forward`."""
        # Without this a kernel would be compiled once for parameters and once for tensors.
        return solve(self, [tensor.detach() for tensor in tensors])

    def loop(self, *args: Any) -> StepLoop:
        """See `Engine.loop`."""
        return ChunkedLoop(*args)

    def backward(self, phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
        """See `Engine.backward`."""
        plain = not phase.ts.requires_grad and phase.query.given is None
        return backward_in_chunks(phase, cotangent) if plain else super().backward(phase, cotangent)


class CompiledIfPossible(Compiled):
    """The same, but without kernels where the field cannot be compiled.

    Args:
        f: the user's function.
    """

    def __init__(self, f: Any):
        self.f = f

    def forward(self, solve: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """See `Engine.forward`."""
        try:
            return super().forward(solve, tensors)
        except CompileError:
            _seconds[identity(self.f)] = math.inf
            return solve(Engine(), tensors)

    def backward(self, phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
        """See `Engine.backward`."""
        try:
            return super().backward(phase, cotangent)
        except CompileError:
            return Engine().backward(phase, cotangent)


class Timed(Engine):
    """Makes steps one at a time, and notes the time that is spent on it.

    Args:
        f: the user's function.
    """

    def __init__(self, f: Any):
        self.f = f

    def forward(self, solve: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """See `Engine.forward`."""
        start = time.perf_counter()
        found = solve(self, tensors)
        _seconds[identity(self.f)] = _seconds.get(identity(self.f), 0.0) + time.perf_counter() - start
        return found

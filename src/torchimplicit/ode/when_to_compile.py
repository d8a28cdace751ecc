"""When a solve is compiled: where the user says so, or once enough time was spent without."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torchimplicit.ode.compiled import can_compile, identity
from torchimplicit.ode.methods import PathSolver

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
        ValueError: neither a bool nor "auto"; or True for an event, dense output, a callback or another kind of solver.
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile: got {compile!r}, expected False, True or 'auto'")
    if compile is not True:
        return
    if not plain:
        raise ValueError(
            "compile: got True with an event, dense output or a callback, expected output times alone; "
            "try compile=False"
        )
    if not can_compile(solver):
        raise ValueError(
            f"compile: got True with {solver}, expected an explicit adaptive solver whose rtol and atol are numbers "
            "and whose controller looks at the last error alone; try Tsit5(), or compile=False"
        )


def decide(compile: bool | str, f: Any, solver: PathSolver, size: int, plain: bool) -> bool | str:
    """Whether a solve shall be compiled; "auto" as `odeint` tells it.

    Args:
        compile: what the user wants.
        f: the user's function.
        solver: the method.
        size: how many numbers the state has.
        plain: whether this is a solve of nothing but output times.
    """
    if compile != "auto":
        return compile
    spent = _seconds.get(identity(f), 0.0)
    return "auto" if plain and can_compile(solver) and size <= SMALL and WORTH <= spent < math.inf else False


@contextmanager
def spending(f: Any) -> Iterator[None]:
    """Notes the time that is spent on a function without a kernel."""
    start = time.perf_counter()
    yield
    _seconds[identity(f)] = _seconds.get(identity(f), 0.0) + time.perf_counter() - start


def give_up(f: Any) -> None:
    """Notes that a function cannot be compiled: "auto" does not try again."""
    _seconds[identity(f)] = math.inf

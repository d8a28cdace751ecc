"""Who makes the steps of an ordinary equation: the host, or kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchimplicit.adjoint.products import Gradients
from torchimplicit.core.compiled.worth import SMALL, check_word
from torchimplicit.ode.compiled.kernel import can_compile
from torchimplicit.ode.compiled.loop import ChunkedLoop, backward_in_chunks
from torchimplicit.path.compiled.engine import Kernels, chosen
from torchimplicit.path.engine import Engine, PhaseBackward
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.solver import PathSolver


def check_compile(compile: Any, solver: PathSolver, plain: bool) -> None:
    """Refuses to compile what cannot be.

    Args:
        compile: what the user wants.
        solver: the method.
        plain: whether this is a solve of nothing but output times.

    Raises:
        ValueError: neither a bool nor "auto"; or True for more than output times or another kind of solver.
    """
    check_word(compile)
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
    wins = plain and can_compile(solver) and size <= SMALL
    return chosen(compile, f, wins, Engine(), Compiled(Engine()))


class Compiled(Kernels):
    """Makes steps by compiled kernels, several a call; one at a time where times want a gradient."""

    def loop(self, *args: Any) -> StepLoop:
        """See `Engine.loop`."""
        return ChunkedLoop(*args)

    def backward(self, phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
        """See `Engine.backward`."""
        plain = not phase.ts.requires_grad and phase.query.given is None
        return backward_in_chunks(phase, cotangent) if plain else super().backward(phase, cotangent)

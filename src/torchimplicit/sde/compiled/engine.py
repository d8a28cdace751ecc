"""Who makes the steps of a stochastic path: the host, or kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchimplicit.adjoint.products import Gradients
from torchimplicit.core.compiled.worth import SMALL, check_word
from torchimplicit.path.compiled.engine import Kernels, chosen
from torchimplicit.path.engine import Engine, Foreseen, PhaseBackward
from torchimplicit.path.solver import PathSolver
from torchimplicit.sde.brownian import Brownian
from torchimplicit.sde.compiled.steps import backward_in_chunks, foreseen
from torchimplicit.sde.engine import Steps
from torchimplicit.sde.solver import SDESolver
from torchimplicit.sde.tree import Tree


def check_compile(compile: Any, solver: SDESolver, source: Brownian | Tree, ts: Any, plain: bool) -> None:
    """Refuses to compile what cannot be.

    Args:
        compile: what the user wants.
        solver: the method.
        source: of the noise.
        ts: output times, as the user gave them.
        plain: whether this is a solve of nothing but output times.

    Raises:
        ValueError: neither a bool nor "auto"; or True for more than output times, for steps that samples choose or make
            at times of their own, or for noise that is not found by numbers of steps alone.
    """
    check_word(compile)
    if compile is not True:
        return
    name = type(solver).__name__
    if not plain:
        raise ValueError("compile: got True with dense output, expected output times alone; try compile=False")
    if solver.adapts:
        raise ValueError(
            f"compile: got True with {name}, which chooses its steps, expected steps of one size; try {name}(dt=...), "
            "or compile=False"
        )
    if is_ragged(ts):
        raise ValueError(
            f"compile: got True with times of shape {tuple(ts.shape)}, expected (T,), the same for all samples; try "
            "compile=False"
        )
    if not is_counted(source):
        raise ValueError(
            f"compile: got True with {source!r}, expected noise that is found by the number of a step alone; try "
            "Brownian(seed=...), or compile=False"
        )


def is_ragged(ts: Any) -> bool:
    """Whether samples have times of their own; what is no tensor is refused by others."""
    return isinstance(ts, Tensor) and ts.dim() > 1


def is_counted(source: Brownian | Tree) -> bool:
    """Whether noise is found by the number of a step alone."""
    return isinstance(source, Brownian) and source.base is None


def choose_engine(
    compile: bool | str, drift: Any, solver: SDESolver, source: Brownian | Tree, ts: Any, size: int, plain: bool
) -> Engine:
    """What makes the steps of a solve.

    Args:
        compile: what the user wants; "auto" as `sdeint` tells it.
        drift: the user's.
        solver: the method.
        source: of the noise.
        ts: output times, as the user gave them.
        size: how many numbers the state has.
        plain: whether this is a solve of nothing but output times.
    """
    wins = plain and not solver.adapts and not is_ragged(ts) and is_counted(source) and size <= SMALL
    return chosen(compile, drift, wins, Steps(), Compiled(Steps()))


class Compiled(Kernels):
    """Makes steps by compiled kernels, several a call; one at a time where times want a gradient or a sample fails."""

    pulls: bool = True

    def ahead(self, solver: PathSolver, ts: Tensor) -> Foreseen | None:
        """See `Engine.ahead`."""
        assert isinstance(solver, SDESolver)
        return foreseen(solver, ts)

    def backward(self, phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
        """See `Engine.backward`."""
        plain = phase.phase.together == 1 or phase.ts.requires_grad or phase.query.given is not None
        return super().backward(phase, cotangent) if plain else backward_in_chunks(phase, cotangent)

"""Nonlinear equations: one loop, one method a file."""

from torchimplicit.solve.anderson import Anderson
from torchimplicit.solve.broyden import Broyden
from torchimplicit.solve.continuation import PseudoTransient
from torchimplicit.solve.loop import Result, Solver, iterate
from torchimplicit.solve.newton import Newton
from torchimplicit.solve.picard import Picard
from torchimplicit.solve.splitting import ForwardBackward, Monotone, PeacemanRachford, monotonicity

__all__ = [
    "Anderson",
    "Broyden",
    "ForwardBackward",
    "Monotone",
    "Newton",
    "PeacemanRachford",
    "Picard",
    "PseudoTransient",
    "Result",
    "Solver",
    "iterate",
    "monotonicity",
]

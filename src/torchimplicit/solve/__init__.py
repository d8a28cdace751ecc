"""Nonlinear equations: one loop, one method a file."""

from torchimplicit.solve.ahead import DENSE
from torchimplicit.solve.anderson import Anderson
from torchimplicit.solve.broyden import Broyden
from torchimplicit.solve.continuation import PseudoTransient
from torchimplicit.solve.fista import FISTA
from torchimplicit.solve.lbfgs import LBFGS
from torchimplicit.solve.least_squares import LevenbergMarquardt
from torchimplicit.solve.loop import Result, Solver, iterate
from torchimplicit.solve.minimiser import Minimiser
from torchimplicit.solve.monotone import Monotone, monotonicity
from torchimplicit.solve.newton import Newton
from torchimplicit.solve.newton_cg import NewtonCG
from torchimplicit.solve.picard import Picard
from torchimplicit.solve.polyalgorithm import Polyalgorithm
from torchimplicit.solve.splitting import ForwardBackward, PeacemanRachford, PreparedMap

__all__ = [
    "DENSE",
    "FISTA",
    "LBFGS",
    "Anderson",
    "Broyden",
    "ForwardBackward",
    "LevenbergMarquardt",
    "Minimiser",
    "Monotone",
    "Newton",
    "NewtonCG",
    "PeacemanRachford",
    "Picard",
    "Polyalgorithm",
    "PreparedMap",
    "PseudoTransient",
    "Result",
    "Solver",
    "iterate",
    "monotonicity",
]

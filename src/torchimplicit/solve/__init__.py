"""Nonlinear equations: one loop, one method a file."""

from torchimplicit.solve.anderson import Anderson
from torchimplicit.solve.loop import Result, Solver, iterate
from torchimplicit.solve.newton import Newton
from torchimplicit.solve.picard import Picard

__all__ = ["Anderson", "Newton", "Picard", "Result", "Solver", "iterate"]

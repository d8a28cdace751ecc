"""Cone programs, and convex programs modelled in cvxpy (extra `optim`: cvxpy and Clarabel)."""

from torchimplicit.optim.cone.canonical import canonicalise
from torchimplicit.optim.cone.cones import Cones
from torchimplicit.optim.cone.convex import ConvexProgram, ConvexSolution
from torchimplicit.optim.cone.geometric import GeometricProgram
from torchimplicit.optim.cone.program import ConeSolution, cone_program

__all__ = [
    "ConeSolution",
    "Cones",
    "ConvexProgram",
    "ConvexSolution",
    "GeometricProgram",
    "canonicalise",
    "cone_program",
]

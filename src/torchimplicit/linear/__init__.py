"""Matrix-free linear algebra, batched, with a status per sample."""

from torchimplicit.linear.direct import LU
from torchimplicit.linear.krylov import CG, GMRES, BiCGStab
from torchimplicit.linear.lanczos import Range, Tridiagonal, eigenvalue_range, lanczos, probe
from torchimplicit.linear.neumann import Neumann
from torchimplicit.linear.operator import IdentityMinus, Jacobian, LinearOperator, LowRank, Matrix
from torchimplicit.linear.solver import LinearResult, LinearSolver, Prepared

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "BiCGStab",
    "IdentityMinus",
    "Jacobian",
    "LinearOperator",
    "LinearResult",
    "LinearSolver",
    "LowRank",
    "Matrix",
    "Neumann",
    "Prepared",
    "Range",
    "Tridiagonal",
    "eigenvalue_range",
    "lanczos",
    "probe",
]

"""The contract that every solver, adjoint and linear solver keeps, public so that anyone's can be held to it.

A third-party solver is checked by `check_solver(MySolver())`, an adjoint by `check_adjoint(MyAdjoint())`, a linear
solver by `check_linear_solver(MyLinearSolver())`; each raises `AssertionError` naming what does not hold.
"""

from torchimplicit.testing.adjoints import check_adjoint, check_transforms
from torchimplicit.testing.cases import CASES, Case
from torchimplicit.testing.linear_solvers import check_linear_solver
from torchimplicit.testing.monotone import MonotoneCell
from torchimplicit.testing.solvers import check_independence, check_solver

__all__ = [
    "CASES",
    "Case",
    "MonotoneCell",
    "check_adjoint",
    "check_independence",
    "check_linear_solver",
    "check_solver",
    "check_transforms",
]

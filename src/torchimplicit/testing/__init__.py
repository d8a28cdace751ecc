"""The contracts that solvers, adjoints and projections keep, public so that anyone's can be held to them.

A third-party solver is checked by `check_solver(MySolver())`, an adjoint by `check_adjoint(MyAdjoint())`, a linear
solver by `check_linear_solver`, a path solver by `check_path_solver`, an adjoint of paths by `check_path_adjoint`, a
solver of stochastic paths by `check_sde_solver`, one that goes down an energy by `check_minimiser`, a projection by
`check_projection`, a linear operator of images by `check_operator`; each raises `AssertionError` naming what does not
hold.
"""

from torchimplicit.testing.adjoints import check_adjoint, check_transforms
from torchimplicit.testing.cases import CASES, Case
from torchimplicit.testing.linear_solvers import check_linear_solver
from torchimplicit.testing.minimisers import check_minimiser
from torchimplicit.testing.monotone import MonotoneCell
from torchimplicit.testing.operators import check_operator
from torchimplicit.testing.path_adjoints import check_path_adjoint
from torchimplicit.testing.path_solvers import check_path_solver
from torchimplicit.testing.paths import PathCase
from torchimplicit.testing.projections import check_projection
from torchimplicit.testing.sde_solvers import SDECase, check_sde_solver
from torchimplicit.testing.solvers import check_independence, check_solver

__all__ = [
    "CASES",
    "Case",
    "MonotoneCell",
    "PathCase",
    "SDECase",
    "check_adjoint",
    "check_independence",
    "check_linear_solver",
    "check_minimiser",
    "check_operator",
    "check_path_adjoint",
    "check_path_solver",
    "check_projection",
    "check_sde_solver",
    "check_solver",
    "check_transforms",
]

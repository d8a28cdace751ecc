"""Optimisation as a layer: quadratic and cone programs, projections, proximal maps, descent, control."""

from typing import TYPE_CHECKING

from torchimplicit.core.migration import missing
from torchimplicit.optim import projection
from torchimplicit.optim.cone import (
    Cones,
    ConeSolution,
    ConvexProgram,
    ConvexSolution,
    GeometricProgram,
    canonicalise,
    cone_program,
)
from torchimplicit.optim.control import BoxDDP, ControlReport, ControlSolution, ilqr, lqr
from torchimplicit.optim.proximal import prox
from torchimplicit.optim.proximal.admm import ADMM, quadratic
from torchimplicit.optim.proximal.descent import ProjectedGradient, ProximalGradient, curvature_bound
from torchimplicit.optim.quadprog import (
    Certificate,
    Clarabel,
    Determined,
    Duals,
    InteriorPoint,
    ProgramReport,
    QPSolution,
    qp,
)
from torchimplicit.optim.smooth.argmin import argmin, least_squares
from torchimplicit.optim.smooth.constrained import ConstrainedSolution

__all__ = [
    "ADMM",
    "BoxDDP",
    "Certificate",
    "Clarabel",
    "ConeSolution",
    "Cones",
    "ConstrainedSolution",
    "ControlReport",
    "ControlSolution",
    "ConvexProgram",
    "ConvexSolution",
    "Determined",
    "Duals",
    "GeometricProgram",
    "InteriorPoint",
    "ProgramReport",
    "ProjectedGradient",
    "ProximalGradient",
    "QPSolution",
    "argmin",
    "canonicalise",
    "cone_program",
    "curvature_bound",
    "ilqr",
    "least_squares",
    "lqr",
    "projection",
    "prox",
    "qp",
    "quadratic",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        raise missing(__name__, name, __all__)

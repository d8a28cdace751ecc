"""Optimisation as a layer: quadratic and cone programs, projections, proximal maps, descent, control."""

from torchimplicit.optim.qp import qp
from torchimplicit.optim.report import Certificate, Duals, ProgramReport, QPSolution

__all__ = ["Certificate", "Duals", "ProgramReport", "QPSolution", "qp"]

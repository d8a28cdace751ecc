"""Convex quadratic programs: batches of dense ones, and sparse ones."""

from torchimplicit.optim.quadprog.qp import qp
from torchimplicit.optim.quadprog.report import Certificate, Determined, Duals, ProgramReport, QPSolution
from torchimplicit.optim.quadprog.solver import Clarabel, InteriorPoint

__all__ = ["Certificate", "Clarabel", "Determined", "Duals", "InteriorPoint", "ProgramReport", "QPSolution", "qp"]

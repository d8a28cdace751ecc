"""Batches of dense convex quadratic programs."""

from torchimplicit.optim.quadratic.qp import qp
from torchimplicit.optim.quadratic.report import Certificate, Duals, ProgramReport, QPSolution

__all__ = ["Certificate", "Duals", "ProgramReport", "QPSolution", "qp"]

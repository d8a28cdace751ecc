"""Batches of dense convex quadratic programs."""

from torchimplicit.optim.quadprog.qp import qp
from torchimplicit.optim.quadprog.report import Certificate, Determined, Duals, ProgramReport, QPSolution

__all__ = ["Certificate", "Determined", "Duals", "ProgramReport", "QPSolution", "qp"]

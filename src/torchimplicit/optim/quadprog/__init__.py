"""Batches of dense convex quadratic programs."""

from torchimplicit.optim.quadprog.qp import qp
from torchimplicit.optim.quadprog.report import Certificate, Duals, ProgramReport, QPSolution

__all__ = ["Certificate", "Duals", "ProgramReport", "QPSolution", "qp"]

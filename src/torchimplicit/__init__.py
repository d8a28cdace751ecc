"""Deep implicit layers for PyTorch: say what the output must satisfy, choose how to find and to differentiate it."""

from torchimplicit import nn
from torchimplicit.adjoint import Implicit, Phantom, Shine, Unrolled
from torchimplicit.core import (
    CaptureError,
    ConvergenceError,
    ConvergenceWarning,
    ImplicitError,
    Report,
    Solution,
    Status,
)
from torchimplicit.equations import argmin, fixed_point, root
from torchimplicit.linear import CG, GMRES, LU, BiCGStab, Neumann
from torchimplicit.solve import Anderson, Broyden, ForwardBackward, Newton, PeacemanRachford, Picard, PseudoTransient

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "Anderson",
    "BiCGStab",
    "Broyden",
    "CaptureError",
    "ConvergenceError",
    "ConvergenceWarning",
    "ForwardBackward",
    "Implicit",
    "ImplicitError",
    "Neumann",
    "Newton",
    "PeacemanRachford",
    "Phantom",
    "Picard",
    "PseudoTransient",
    "Report",
    "Shine",
    "Solution",
    "Status",
    "Unrolled",
    "argmin",
    "fixed_point",
    "nn",
    "root",
]

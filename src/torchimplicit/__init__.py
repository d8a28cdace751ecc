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
from torchimplicit.ode import PID, RK4, Bosh3, Checkpointed, Direct, Dopri5, Euler, Heun, Midpoint, Tsit5, odeint
from torchimplicit.solve import Anderson, Broyden, ForwardBackward, Newton, PeacemanRachford, Picard, PseudoTransient

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "RK4",
    "Anderson",
    "BiCGStab",
    "Bosh3",
    "Broyden",
    "CaptureError",
    "Checkpointed",
    "ConvergenceError",
    "ConvergenceWarning",
    "Direct",
    "Dopri5",
    "Euler",
    "ForwardBackward",
    "Heun",
    "Implicit",
    "ImplicitError",
    "Midpoint",
    "Neumann",
    "Newton",
    "PID",
    "PeacemanRachford",
    "Phantom",
    "Picard",
    "PseudoTransient",
    "Report",
    "Shine",
    "Solution",
    "Status",
    "Tsit5",
    "Unrolled",
    "argmin",
    "fixed_point",
    "nn",
    "odeint",
    "root",
]

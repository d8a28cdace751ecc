"""Paths: ordinary differential equations, their solvers and their adjoints."""

from torchimplicit.ode.adjoint import Checkpointed, Direct, PathAdjoint
from torchimplicit.ode.control import PID
from torchimplicit.ode.methods import RK4, Bosh3, Dopri5, Euler, Heun, Midpoint, Tsit5
from torchimplicit.ode.odeint import odeint

__all__ = [
    "PID",
    "RK4",
    "Bosh3",
    "Checkpointed",
    "Direct",
    "Dopri5",
    "Euler",
    "Heun",
    "Midpoint",
    "PathAdjoint",
    "Tsit5",
    "odeint",
]

"""Paths: ordinary differential equations, their solvers and their adjoints."""

from torchimplicit.ode.adjoint import Checkpointed, Direct, PathAdjoint
from torchimplicit.ode.backsolve import Backsolve
from torchimplicit.ode.control import PID
from torchimplicit.ode.dense import DensePath
from torchimplicit.ode.dopri8 import Dopri8
from torchimplicit.ode.event import Event
from torchimplicit.ode.methods import (
    RK4,
    AdaptiveSolver,
    Bosh3,
    Dopri5,
    Euler,
    ExplicitRK,
    FixedSolver,
    Heun,
    Midpoint,
    PathSolver,
    Tsit5,
)
from torchimplicit.ode.odeint import odeint
from torchimplicit.ode.report import Crossings, PathReport, PathSolution
from torchimplicit.ode.reversible import Reversible
from torchimplicit.ode.split import Split
from torchimplicit.ode.steady_state import SteadyState
from torchimplicit.ode.stiff import ESDIRK54, KenCarp4, Kvaerno3
from torchimplicit.ode.symplectic import Leapfrog, Suzuki4
from torchimplicit.ode.tableau import Tableau

__all__ = [
    "ESDIRK54",
    "PID",
    "RK4",
    "AdaptiveSolver",
    "Backsolve",
    "Bosh3",
    "Checkpointed",
    "Crossings",
    "DensePath",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "ExplicitRK",
    "FixedSolver",
    "Heun",
    "KenCarp4",
    "Kvaerno3",
    "Leapfrog",
    "Midpoint",
    "PathAdjoint",
    "PathReport",
    "PathSolution",
    "PathSolver",
    "Reversible",
    "Split",
    "SteadyState",
    "Suzuki4",
    "Tableau",
    "Tsit5",
    "odeint",
]

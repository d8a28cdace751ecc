"""Paths: ordinary differential equations, their solvers and their adjoints."""

from torchimplicit.ode.adjoint.backsolve import Backsolve
from torchimplicit.ode.explicit.dopri8 import Dopri8
from torchimplicit.ode.explicit.methods import RK4, Bosh3, Dopri5, Euler, ExplicitRK, Heun, Midpoint, Tsit5
from torchimplicit.ode.explicit.tableau import Tableau
from torchimplicit.ode.implicit.methods import ESDIRK54, KenCarp4, Kvaerno3
from torchimplicit.ode.odeint import odeint
from torchimplicit.ode.steady_state import SteadyState
from torchimplicit.ode.symplectic import Leapfrog, Suzuki4
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.checkpointed import Checkpointed, Direct
from torchimplicit.path.adjoint.reversible import Reversible
from torchimplicit.path.dense.dense_path import DensePath
from torchimplicit.path.events.event import Event
from torchimplicit.path.field.split import Split
from torchimplicit.path.report import PathReport
from torchimplicit.path.solution import Crossings, PathSolution
from torchimplicit.path.solver import AdaptiveSolver, FixedSolver, PathSolver
from torchimplicit.path.stepsize import PID, Fixed

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
    "Fixed",
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

"""Stochastic paths: equations, methods, and the noise that drives them."""

from typing import TYPE_CHECKING

from torchimplicit.core.migration import missing
from torchimplicit.path.adjoint.checkpointed import Checkpointed, Direct
from torchimplicit.path.adjoint.reversible import Reversible
from torchimplicit.path.solver import FixedSolver
from torchimplicit.sde.bridge import Increment, bridge, joined, levy_area
from torchimplicit.sde.brownian import Brownian, Noise
from torchimplicit.sde.convert import to_ito, to_stratonovich
from torchimplicit.sde.dense import StochasticPath
from torchimplicit.sde.methods.euler_maruyama import EulerMaruyama
from torchimplicit.sde.methods.heun import Heun
from torchimplicit.sde.methods.log_ode import LogODE
from torchimplicit.sde.methods.midpoint import Midpoint
from torchimplicit.sde.methods.milstein import Milstein
from torchimplicit.sde.methods.reversible_heun import ReversibleHeun
from torchimplicit.sde.methods.shark import ShARK
from torchimplicit.sde.methods.sra1 import SRA1
from torchimplicit.sde.methods.srid2 import SRID2
from torchimplicit.sde.report import StochasticReport
from torchimplicit.sde.sdeint import sdeint
from torchimplicit.sde.solution import StochasticSolution
from torchimplicit.sde.solver import SDESolver
from torchimplicit.sde.stack import Stack, Tried
from torchimplicit.sde.tree import PathInTree, Tree

__all__ = [
    "SRA1",
    "SRID2",
    "Brownian",
    "Checkpointed",
    "Direct",
    "EulerMaruyama",
    "FixedSolver",
    "Heun",
    "Increment",
    "LogODE",
    "Midpoint",
    "Milstein",
    "Noise",
    "PathInTree",
    "Reversible",
    "ReversibleHeun",
    "SDESolver",
    "ShARK",
    "Stack",
    "StochasticPath",
    "StochasticReport",
    "StochasticSolution",
    "Tree",
    "Tried",
    "bridge",
    "joined",
    "levy_area",
    "sdeint",
    "to_ito",
    "to_stratonovich",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        raise missing(__name__, name, __all__)

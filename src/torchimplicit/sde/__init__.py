"""Stochastic paths: equations, methods, and the noise that drives them."""

from torchimplicit.path.adjoint.checkpointed import Checkpointed, Direct
from torchimplicit.sde.bridge import Increment, bridge, joined, levy_area
from torchimplicit.sde.brownian import Brownian, Noise
from torchimplicit.sde.convert import to_ito, to_stratonovich
from torchimplicit.sde.methods.euler_maruyama import EulerMaruyama
from torchimplicit.sde.methods.heun import Heun
from torchimplicit.sde.report import StochasticReport
from torchimplicit.sde.sdeint import sdeint
from torchimplicit.sde.solver import SDESolver
from torchimplicit.sde.stack import Stack, Tried
from torchimplicit.sde.tree import PathInTree, Tree

__all__ = [
    "Brownian",
    "Checkpointed",
    "Direct",
    "EulerMaruyama",
    "Heun",
    "Increment",
    "Noise",
    "PathInTree",
    "SDESolver",
    "Stack",
    "StochasticReport",
    "Tree",
    "Tried",
    "bridge",
    "joined",
    "levy_area",
    "sdeint",
    "to_ito",
    "to_stratonovich",
]

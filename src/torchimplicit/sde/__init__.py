"""Stochastic paths: the noise that drives them."""

from torchimplicit.sde.bridge import Increment, bridge, joined, levy_area
from torchimplicit.sde.brownian import Brownian, Noise
from torchimplicit.sde.stack import Stack, Tried
from torchimplicit.sde.tree import PathInTree, Tree

__all__ = ["Brownian", "Increment", "Noise", "PathInTree", "Stack", "Tree", "Tried", "bridge", "joined", "levy_area"]

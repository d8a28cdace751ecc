"""Is a layer right, and does it cost what it should? Numbers to read, and pictures where matplotlib is installed."""

from torchimplicit.diagnose.certificate import Certificate
from torchimplicit.diagnose.certify import certify
from torchimplicit.diagnose.convergence import Convergence, convergence
from torchimplicit.diagnose.gradient_check import GradientCheck, check_gradient
from torchimplicit.diagnose.graph import GradientGraph, Node, gradient_graph
from torchimplicit.diagnose.memory import Memory, memory
from torchimplicit.diagnose.spectrum import spectral_radius
from torchimplicit.diagnose.stochastic import PathError, strong_error, weak_error

__all__ = [
    "Certificate",
    "Convergence",
    "GradientCheck",
    "GradientGraph",
    "Memory",
    "Node",
    "PathError",
    "certify",
    "check_gradient",
    "convergence",
    "gradient_graph",
    "memory",
    "spectral_radius",
    "strong_error",
    "weak_error",
]

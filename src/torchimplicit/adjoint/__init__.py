"""How a solved condition is differentiated."""

from torchimplicit.adjoint.call import Adjoint, PointCall, PointRecord
from torchimplicit.adjoint.implicit import Implicit, ImplicitSolve
from torchimplicit.adjoint.iterates import attached
from torchimplicit.adjoint.phantom import Phantom
from torchimplicit.adjoint.quarantine import find_nonfinite, quarantine, unmoved
from torchimplicit.adjoint.shine import Shine
from torchimplicit.adjoint.unrolled import Unrolled

__all__ = [
    "Adjoint",
    "Implicit",
    "ImplicitSolve",
    "Phantom",
    "PointCall",
    "PointRecord",
    "Shine",
    "Unrolled",
    "attached",
    "find_nonfinite",
    "quarantine",
    "unmoved",
]

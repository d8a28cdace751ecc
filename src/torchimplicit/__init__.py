"""Deep implicit layers for PyTorch: say what the output must satisfy, choose how to find and to differentiate it.

Points are here at once. Paths, programs and the modules are loaded when one of their names is first used, so that a
script does not wait for what it has no use for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from torchimplicit.core.migration import missing
from torchimplicit.equations import fixed_point, root
from torchimplicit.linear import CG, GMRES, LU, BiCGStab, Neumann
from torchimplicit.solve import (
    FISTA,
    LBFGS,
    Anderson,
    Broyden,
    ForwardBackward,
    LevenbergMarquardt,
    Newton,
    NewtonCG,
    PeacemanRachford,
    Picard,
    Polyalgorithm,
    PseudoTransient,
)

if TYPE_CHECKING:
    from torchimplicit import imaging, nn, optim
    from torchimplicit.ode import (
        ESDIRK54,
        PID,
        RK4,
        Backsolve,
        Bosh3,
        Checkpointed,
        Direct,
        Dopri5,
        Dopri8,
        Euler,
        Event,
        Fixed,
        Heun,
        KenCarp4,
        Kvaerno3,
        Leapfrog,
        Midpoint,
        Reversible,
        Split,
        SteadyState,
        Suzuki4,
        Tsit5,
        odeint,
    )
    from torchimplicit.optim import argmin, ilqr, least_squares, lqr, qp
    from torchimplicit.sde import sdeint

__version__ = "0.1.0"

__all__ = [
    "CG",
    "ESDIRK54",
    "FISTA",
    "GMRES",
    "LBFGS",
    "LU",
    "PID",
    "RK4",
    "Anderson",
    "Backsolve",
    "BiCGStab",
    "Bosh3",
    "Broyden",
    "CaptureError",
    "Checkpointed",
    "ConvergenceError",
    "ConvergenceWarning",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "Fixed",
    "ForwardBackward",
    "Heun",
    "Implicit",
    "ImplicitError",
    "KenCarp4",
    "Kvaerno3",
    "Leapfrog",
    "LevenbergMarquardt",
    "Midpoint",
    "Neumann",
    "Newton",
    "NewtonCG",
    "PeacemanRachford",
    "Phantom",
    "Picard",
    "Polyalgorithm",
    "PseudoTransient",
    "Report",
    "Reversible",
    "Shine",
    "Solution",
    "Split",
    "Status",
    "SteadyState",
    "Suzuki4",
    "Tsit5",
    "Unrolled",
    "__version__",
    "argmin",
    "fixed_point",
    "ilqr",
    "imaging",
    "least_squares",
    "lqr",
    "nn",
    "odeint",
    "optim",
    "qp",
    "root",
    "sdeint",
]


def __getattr__(name: str) -> Any:
    if name in ("imaging", "nn", "ode", "optim", "sde"):
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise missing(__name__, name, __all__)
    home = {"sdeint": "sde"} | dict.fromkeys(("argmin", "ilqr", "least_squares", "lqr", "qp"), "optim")
    found = globals()[name] = getattr(import_module(f"{__name__}.{home.get(name, 'ode')}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

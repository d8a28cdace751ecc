"""Stochastic equations to measure on: the same functions and the same methods for every library."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import torchimplicit as ti
from torchimplicit.path.adjoint.base import PathAdjoint

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchsde  # pyright: ignore[reportMissingImports]
except ImportError:
    torchsde: Any = None

METHODS = {
    "Euler": (ti.sde.EulerMaruyama, "euler"),
    "Milstein": (ti.sde.Milstein, "milstein"),
    "Heun": (ti.sde.Heun, "heun"),
    "ReversibleHeun": (ti.sde.ReversibleHeun, "reversible_heun"),
}
FINER = 16  # steps of the path that errors are measured by, to one of the solve


class Equation(nn.Module):
    """Drift `f` and diffusion `g` of diagonal noise, as torchsde wants them; `sde_type` is the method's calculus."""

    noise_type = "diagonal"
    sde_type = "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


class Geometric(Equation):
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.1 * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.2 * y


class OrnsteinUhlenbeck(Equation):
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, 0.3)


class Networks(Equation):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))
        self.diffusion = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width), nn.Sigmoid())

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffusion(y)


class Counted(Equation):
    """An equation that notes what it is asked for."""

    def __init__(self, equation: Equation):
        super().__init__()
        self.equation, self.sde_type = equation, equation.sde_type
        self.asked: list[str] = []

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.asked.append("f")
        return self.equation.f(t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        self.asked.append("g")
        return self.equation.g(t, y)


@dataclass
class Case:
    """A problem on the times from 0 to 1.

    Attributes:
        name: of the row.
        equation: drift and diffusion.
        y0: start, `(B, n)`.
        steps: how many, of the same size.
        methods: which, of `METHODS`.
        in_jax: which of the equations of `sde_jax.py` it is.
    """

    name: str
    equation: Equation
    y0: Tensor
    steps: int
    methods: tuple[str, ...]
    in_jax: str


def cases(quick: bool) -> list[Case]:
    """The problems of the speed."""
    torch.manual_seed(0)
    many, some, steps = (8, 4, 4) if quick else (1024, 256, 100)
    every = tuple(METHODS)
    return [
        Case(f"GBM {many} x 1", Geometric(), torch.ones(many, 1), steps, ("Euler",), "gbm"),
        Case(f"OU {many} x 10", OrnsteinUhlenbeck(), torch.ones(many, 10), steps, every, "ou"),
        Case(f"networks {some} x 16", Networks(16, 64), torch.ones(some, 16), steps // 2, every, "net"),
    ]


Solve = Callable[..., Tensor]  # the last state from a start; `finer=True`: on one path, with smaller steps


def ours(case: Case, method: str, adjoint: PathAdjoint, compile: bool = False) -> Solve:
    """Steps of this library, compiled or not."""
    kind, f, g = METHODS[method][0], case.equation.f, case.equation.g
    ts = torch.tensor([0.0, 1.0])

    def solve(y0: Tensor, finer: bool | None = None) -> Tensor:
        solver = kind(dt=1 / case.steps / (FINER if finer else 1))
        source = None if finer is None else ti.sde.Brownian(seed=0, base=1 / case.steps)
        found = ti.sdeint(
            f, g, y0, ts, solver=solver, calculus=solver.calculus, brownian=source, adjoint=adjoint, noise="diagonal",
            compile=compile,
        )  # fmt: skip
        return found.value[-1]

    return solve


def theirs(case: Case, method: str) -> Solve:
    """Steps of torchsde, whose source of noise is told their size, which it does not look for itself.

    Differentiated through, but for the reversible method, which has its own adjoint.
    """
    word, equation = METHODS[method][1], copy.copy(case.equation)
    equation.sde_type = METHODS[method][0].calculus
    ts = torch.tensor([0.0, 1.0])
    options = {"grad_free": True} if word == "milstein" else {}  # the quicker way, and the formula of ours

    def solve(y0: Tensor, finer: bool | None = None) -> Tensor:
        dt = 1 / case.steps / (FINER if finer else 1)
        entropy = None if finer is None else 0
        told = dt if finer is None else 1 / case.steps / FINER  # what it is told changes the path
        bm = torchsde.BrownianInterval(0.0, 1.0, size=y0.shape, dtype=y0.dtype, dt=told, entropy=entropy)
        call = torchsde.sdeint
        if word.startswith("reversible"):
            call = partial(torchsde.sdeint_adjoint, adjoint_method=f"adjoint_{word}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(equation, y0, ts, method=word, dt=dt, bm=bm, options=dict(options))[-1]

    return solve


def bare(case: Case, method: str, numbered: bool = False) -> Solve | None:
    """A loop without a solver: evaluations, normals of torch's generator or by number, sums; None if not written."""
    f, g, h = case.equation.f, case.equation.g, 1 / case.steps

    def euler(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return torch.addcmul(torch.add(y, f(t, y), alpha=h), g(t, y), w)

    def milstein(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        at = g(t, y)
        bent = g(t, torch.add(y, at, alpha=h**0.5)) - at
        end = torch.addcmul(torch.add(y, f(t, y), alpha=h), at, w)
        return torch.addcmul(end, bent, torch.addcmul(-half, w, w, value=0.5 / h**0.5))

    def heun(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        slope, at = f(t, y), g(t, y)
        z = torch.addcmul(torch.add(y, slope, alpha=h), at, w)
        return torch.addcmul(torch.add(y, slope + f(t, z), alpha=0.5 * h), at + g(t, z), w, value=0.5)

    step, half = {"Euler": euler, "Milstein": milstein, "Heun": heun}.get(method), torch.tensor(0.5 * h**0.5)
    if step is None:
        return None

    def solve(y0: Tensor, finer: bool | None = None) -> Tensor:
        y, t = y0, torch.zeros(())
        if numbered:
            noise, lengths = ti.sde.Brownian(seed=0).bind(y0.detach()), torch.full((case.steps,), h).split(50)
            some = (noise.increments(50 * k, each).W.unbind() for k, each in enumerate(lengths))
            paths = (w for each in some for w in each)
        else:
            paths = (torch.randn(case.steps, *y.shape) * h**0.5).unbind()
        for w in paths:
            y = step(t, y, w)
        return y

    return solve

"""Steady states: a fixed point or a root found by following its flow until it stands still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require
from torchimplicit.core.problem import Residual
from torchimplicit.core.tree import norm
from torchimplicit.ode.explicit.methods import Tsit5
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.solver import AdaptiveSolver
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import PID, UNCONFIRMED, Tolerance
from torchimplicit.solve.loop import Solver

PART = 0.25  # of a step's move that its error may be
ROUNDINGS = 4.0  # of the state's size that an error may be at least
FIRST = 0.1  # of a state's size, at least 1, that the first step tries to move by


class FlowState(NamedTuple):
    """Iterate and residual, `(B, n)` each, the next step sizes and the largest ones after those, `(B,)`."""

    z: Tensor
    residual: Tensor
    h: Tensor
    most: Tensor


@dataclass(frozen=True, kw_only=True)
class SteadyState(Solver):
    r"""Integrates $\dot z = -r(z)$, for a fixed point $\dot z = f(z) - z$, until the rate is below the tolerance.

    The step sizes are a sample's own, and chosen by the path solver's error estimate as along any path; close to the
    end, where its tolerances would allow errors larger than what is left of the way, an error may be a quarter of the
    step's move. Nothing of the path is kept: `Implicit` differentiates the point. Rejected steps count as steps.

    Use it where the way matters: of several roots it finds the stable one that the flow from the start leads to, which
    makes no leaps. Not where any root will do: `Anderson`, `Broyden` and `Newton` need a fraction of the evaluations.
    Not for stiff flows, whose explicit steps stability keeps short: there `PseudoTransient` follows the flow in few
    linearly implicit steps, and ends in Newton's. Nor for a root that the flow runs away from (the eigenvalues of the
    residual's Jacobian must have positive real parts there; a root `g` with the wrong sign wants `-g`).

    Source: for layers, C. Rackauckas et al., Composability in Julia: Implementing Deep Equilibrium Models via Neural
    ODEs, 2021.

    Args:
        solver: how to integrate: an adaptive path solver with its tolerances, `dt0` and `control`; its `max_steps` and
            `dt_min` play no part.
        rtol: see `Solver`; of the rate.
        atol: see `Solver`.
        max_steps: see `Solver`; rejected ones included.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> sol = ti.root(
        ...     lambda z: z**3 - z, torch.tensor([0.3, -0.3]), solver=ti.SteadyState()
        ... )
        >>> [round(v, 3) for v in sol.value.tolist()]  # the flow leaves the root at 0
        [1.0, -1.0]
    """

    patience: ClassVar[int] = 100  # a rate may climb for long before it falls

    solver: AdaptiveSolver = Tsit5(rtol=1e-2, atol=1e-4)
    max_steps: int = 500

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "solver", isinstance(self.solver, AdaptiveSolver), "an adaptive path solver such as Tsit5()")
        numbers = not isinstance(self.solver.rtol, Tensor) and not isinstance(self.solver.atol, Tensor)
        require(self, "solver", numbers, "one whose rtol and atol are numbers")
        plain = isinstance(self.solver.control, PID) and not self.solver.control.remembers
        require(self, "solver", plain, "one with PID(proportional=0, derivative=0)")

    def init(self, problem: Residual, z: Tensor) -> FlowState:
        """The state at the start."""
        residual = problem(z)
        with torch.no_grad():
            if self.solver.dt0 is not None:
                h = torch.full_like(z[:, 0], self.solver.dt0)
            else:  # moves by a part of the state's size; an evaluation more would not pay at a solution
                size = norm(z).clamp_min(z.shape[1] ** 0.5)
                h = FIRST * size / norm(residual).clamp_min(torch.finfo(z.dtype).eps)
        return FlowState(z, residual, h, torch.full_like(h, torch.inf))

    def step(self, problem: Residual, state: FlowState) -> FlowState:
        """One step along the flow; a sample whose error was too large stays, with a smaller step."""
        with torch.no_grad():
            done = self._stepped(problem, state, state.h, graph=False)
            ratio = self._ratio(state.z, done, problem.eps).nan_to_num(torch.inf, torch.inf)
            assert isinstance(self.solver.control, PID)
            allowed = state.h * self.solver.control.factor(ratio, None, self.solver.order)
            moves = (ratio <= 1).unsqueeze(1)
        if torch.is_grad_enabled():  # the same step again, where it is to be differentiated
            done = self._stepped(problem, state, torch.where(ratio <= 1, state.h, 0.0), graph=True)
        z = torch.where(moves, done.y, state.z)
        residual = problem(z) if done.slope is None else torch.where(moves, -done.slope, state.residual)
        return FlowState(z, residual, torch.minimum(allowed, state.most), UNCONFIRMED * allowed)

    def _stepped(self, problem: Residual, state: FlowState, h: Tensor, graph: bool) -> Stepped:
        step, span = self.solver.stepper(state.z, graph), Span(torch.zeros_like(h), h, h)
        return step(_flow(problem), span, state.z, -state.residual)

    def _ratio(self, z: Tensor, done: Stepped, eps: float) -> Tensor:
        """The error of a step over what it may be, `(B,)`; `eps` is the rounding of slopes, which is no error."""
        assert done.error is not None
        floor = ROUNDINGS * eps
        ratio = Tolerance(max(self.solver.rtol, floor), self.solver.atol, z).ratio(done.error, z, done.y)
        move = PART * norm(done.y - z) + floor * norm(done.y)
        return torch.maximum(ratio, norm(done.error) / move.clamp_min(torch.finfo(z.dtype).tiny))


def _flow(problem: Residual) -> Field:
    return Field(lambda t, z: -problem(z))

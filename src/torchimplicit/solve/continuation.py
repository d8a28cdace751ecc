"""Pseudo-transient continuation: to a steady state along the way that time would take, ending in Newton's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require
from torchimplicit.core.problem import Residual
from torchimplicit.core.tree import norm
from torchimplicit.linear import Jacobian, LinearOperator, LinearSolver
from torchimplicit.solve.loop import Solver
from torchimplicit.solve.newton import choose_linear_solver


class TransientState(NamedTuple):
    """Iterate and residual, `(B, n)` each, and `1 / (dt |r|)`, which the relaxation keeps, `(B,)`."""

    z: Tensor
    residual: Tensor
    rate: Tensor


@dataclass(frozen=True, kw_only=True)
class PseudoTransient(Solver):
    r"""Pseudo-transient continuation, for steady states of $\dot z = -r(z)$; of a fixed point, $\dot z = f(z) - z$.

    Takes linearly implicit Euler steps, $(I / \Delta t + J)\, s = -r$, whose pseudo-time step grows as the residual
    falls (switched evolution relaxation), sample by sample: $\Delta t_{k+1} = \Delta t_k |r_k| / |r_{k+1}|$. Early
    steps follow the flow, also where the residual must rise before it falls, and so lead to the stable steady state
    that the flow leads to; late steps are Newton's, and converge superlinearly.

    Use it where `Newton` with backtracking sticks in a local minimum of the residual or finds an unstable root, for
    stiff flows above all. A step costs one evaluation and a linear solve, well conditioned as long as the time step is
    small. Not where `Newton` arrives: it takes more steps. Not for a root that the flow runs away from (the eigenvalues
    of the Jacobian must have positive real parts there; a root `g` with the wrong sign wants `-g`).

    Source: C. T. Kelley and D. Keyes, SIAM J. Numer. Anal. 35 (1998) 508; the relaxation from W. Mulder and B. van
    Leer, J. Comput. Phys. 59 (1985) 232.

    Args:
        dt: the first pseudo-time step, > 0. Small ones follow the flow more faithfully, in more steps: keep it below
            the time in which the flow's fastest growing mode grows e-fold. At `inf` this is Newton without line
            search.
        linear_solver: None takes `LU()` up to 256 unknowns per sample and `GMRES()` beyond.
        rtol: see `Solver`.
        atol: see `Solver`.
        max_steps: see `Solver`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> start = torch.ones(
        ...     1, 1, dtype=torch.float64
        ... )  # between a local minimum of |r| and the root at -1.77
        >>> solver = ti.PseudoTransient(dt=0.2)
        >>> round(ti.root(lambda z: z**3 - 2 * z + 2, start, solver=solver).value.item(), 3)
        -1.769
    """

    patience: ClassVar[int] = 100  # a residual may climb for long before it falls

    dt: float = 1.0
    linear_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "dt", is_number(self.dt) and self.dt > 0, "a number > 0")
        linear = self.linear_solver is None or isinstance(self.linear_solver, LinearSolver)
        require(self, "linear_solver", linear, "a LinearSolver such as LU() or GMRES(), or None")

    def init(self, problem: Residual, z: Tensor) -> TransientState:
        """The state at the start."""
        residual = problem(z)
        size = norm(residual.detach())
        return TransientState(z, residual, 1 / (self.dt * size.clamp_min(torch.finfo(z.dtype).tiny)))

    def step(self, problem: Residual, state: TransientState) -> TransientState:
        """One linearly implicit Euler step."""
        z, residual, rate = state
        linear_solver = choose_linear_solver(self.linear_solver, z)
        operator = Shifted(Jacobian(problem, z), rate * norm(residual.detach()))
        z = z - linear_solver.prepare(operator).solution(residual)
        return TransientState(z, problem(z), rate)


class Shifted(LinearOperator):
    """`A + c I` with a shift `c` for every sample.

    Args:
        operator: `A`.
        shift: `c`, `(B,)`.
    """

    def __init__(self, operator: LinearOperator, shift: Tensor):
        """Wraps an operator."""
        self.operator, self.shift = operator, shift.unsqueeze(1)

    def matvec(self, v: Tensor) -> Tensor:
        """`A v + c v`."""
        return torch.addcmul(self.operator.matvec(v), self.shift, v)

    def rmatvec(self, v: Tensor) -> Tensor:
        """`A^T v + c v`."""
        return torch.addcmul(self.operator.rmatvec(v), self.shift, v)

    def dense(self, like: Tensor) -> Tensor:
        """The matrices `(B, n, n)`."""
        return self.operator.dense(like) + torch.diag_embed(self.shift.expand_as(like))

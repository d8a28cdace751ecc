"""A nonlinear control task: its trajectories, what they cost, and its expansion along one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from torchimplicit.linear.batched import times
from torchimplicit.optim.control.riccati import costates


class Expansion(NamedTuple):
    """A task along a trajectory, to second order.

    Attributes:
        F: derivatives of the dynamics by state and control, `(B, T, nx, nx + nu)`.
        g: those of the cost, `(B, T, nx + nu)`.
        p: those of the last state's cost, `(B, nx)`.
        costates: the multipliers of the dynamics, `(B, T, nx)`.
        slope: the derivative of the whole cost by the controls, `(B, T, nu)`.
    """

    F: Tensor
    g: Tensor
    p: Tensor
    costates: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Task:
    """`min sum_t cost(x_t, u_t) + final_cost(x_T)` along `x_{t+1} = dynamics(x_t, u_t)` from `x_0`, `l <= u <= h`.

    Functions take a batch of states and controls; samples are independent. Times are mapped over by `torch.vmap`.

    Args:
        x0: first states, `(B, nx)`.
        lower: lower bounds of the controls, `(B, T, nu)`.
        upper: upper bounds.
        dynamics: `(x, u, *args, *now) -> (B, nx)`.
        cost: `(x, u, *args, *now) -> (B,)`.
        final_cost: `(x, *args) -> (B,)`, or None.
        args: further arguments, the same at all times.
        sequences: tensors `(T, ...)`, of which row `t` is `now` at time `t`.
    """

    x0: Tensor
    lower: Tensor
    upper: Tensor
    dynamics: Callable
    cost: Callable
    final_cost: Callable | None
    args: tuple
    sequences: tuple

    def step(self, z: Tensor, *now: Tensor) -> Tensor:
        """The next states `(B, nx)` from states and controls side by side, `(B, nx + nu)`."""
        x, u = self._split(z)
        return self.dynamics(x, u, *self.args, *now)

    def stage_cost(self, z: Tensor, *now: Tensor) -> Tensor:
        """What one stage costs, `(B,)`."""
        x, u = self._split(z)
        return self.cost(x, u, *self.args, *now)

    def last_cost(self, x: Tensor) -> Tensor:
        """What the last state costs, `(B,)`."""
        return torch.zeros_like(x[:, 0]) if self.final_cost is None else self.final_cost(x, *self.args)

    def rollout(self, u: Tensor) -> Tensor:
        """The states `(B, T + 1, nx)` that controls `(B, T, nu)` lead to."""
        x, states = self.x0, [self.x0]
        for t, control in enumerate(u.unbind(1)):
            x = self.step(torch.cat((x, control), -1), *self.now(t))
            states.append(x)
        return torch.stack(states, 1)

    def follow(self, states: Tensor, u: Tensor, K: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """States and controls of a policy about a trajectory, kept within the bounds."""
        x, along, controls = self.x0, [self.x0], []
        for t in range(u.shape[1]):
            control = u[:, t] + k[:, t] + times(K[:, t], x - states[:, t])
            control = control.clamp(self.lower[:, t], self.upper[:, t])
            x = self.step(torch.cat((x, control), -1), *self.now(t))
            along.append(x)
            controls.append(control)
        return torch.stack(along, 1), torch.stack(controls, 1)

    def total(self, states: Tensor, u: Tensor) -> Tensor:
        """What trajectories cost, `(B,)`."""
        return self._all_times(self.stage_cost, self.stages(states, u)).sum(1) + self.last_cost(states[:, -1])

    def slope(self, u: Tensor) -> Tensor:
        """The derivative of the whole cost by the controls, `(B, T, nu)`, itself differentiable."""
        return grad(lambda u: self.total(self.rollout(u), u).sum())(u)

    def expand(self, states: Tensor, u: Tensor) -> Expansion:
        """First derivatives of everything along a trajectory."""
        nx, z = states.shape[-1], self.stages(states, u)
        F = self._all_times(lambda z, *now: rows(lambda z: self.step(z, *now), z, nx), z)
        g = self._all_times(lambda z, *now: grad(lambda z: self.stage_cost(z, *now).sum())(z), z)
        p = grad(lambda x: self.last_cost(x).sum())(states[:, -1])
        multipliers = costates(F, g[..., :nx], p)
        slope = g[..., nx:] + times(F[..., nx:].mT, multipliers)
        return Expansion(F, g, p, multipliers, slope)

    def curvature(self, states: Tensor, u: Tensor, multipliers: Tensor | None) -> tuple[Tensor, Tensor]:
        """Second derivatives `(B, T, n, n)` of the cost, of the Lagrangian where multipliers are given; and the last.

        Without the multipliers' share they are those of iLQR (Gauss-Newton): the dynamics' own curvature is left out.
        """

        def lagrangian(z: Tensor, costate: Tensor, *now: Tensor) -> Tensor:
            cost = self.stage_cost(z, *now).sum()
            return cost if multipliers is None else cost + (costate * self.step(z, *now)).sum()

        def hessian(z: Tensor, costate: Tensor, *now: Tensor) -> Tensor:
            return rows(grad(lambda z: lagrangian(z, costate, *now)), z, z.shape[-1])

        last, z = states[:, -1], self.stages(states, u)
        held = multipliers if multipliers is not None else states[:, 1:]
        H = self._all_times(hessian, z, held)
        P = rows(grad(lambda x: self.last_cost(x).sum()), last, last.shape[-1])
        return 0.5 * (H + H.mT), 0.5 * (P + P.mT)

    def stages(self, states: Tensor, u: Tensor) -> Tensor:
        """States and controls of every stage side by side, `(B, T, nx + nu)`."""
        return torch.cat((states[:, :-1], u), -1)

    def now(self, t: int) -> tuple[Tensor, ...]:
        """What the sequences hold at a time."""
        return tuple(sequence[t] for sequence in self.sequences)

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        nx = self.x0.shape[-1]
        return z[..., :nx], z[..., nx:]

    def _all_times(self, function: Callable[..., Tensor], *along: Tensor) -> Tensor:
        """A function of one time's rows, at all times: `(B, T, ...)` from tensors `(B, T, ...)`."""
        in_dims = (1,) * len(along) + (0,) * len(self.sequences)
        try:
            # Not out_dims=1, which fails for what does not vary along the map (the derivatives of linear dynamics).
            return torch.vmap(function, in_dims=in_dims)(*along, *self.sequences).movedim(0, 1)
        except Exception as error:
            error.add_note("(dynamics and cost are differentiated under torch.vmap, which maps over times)")
            raise


def rows(function: Callable[[Tensor], Tensor], z: Tensor, count: int) -> Tensor:
    """The Jacobians `(B, count, n)` of a function of independent samples, `(B, n) -> (B, count)`."""
    _, back, *_ = vjp(function, z)
    basis = torch.eye(count, dtype=z.dtype, device=z.device)
    return torch.vmap(lambda row: back(row.expand(len(z), count))[0])(basis).movedim(0, 1)

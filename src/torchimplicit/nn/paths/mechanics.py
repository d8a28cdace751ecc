"""Vector fields of mechanics, from one scalar network: what they conserve they conserve by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.nn.paths.vjp import gradient, linearise


class _Mechanics(nn.Module):
    """Base of the fields of a scalar function `(B, 2n) -> (B,)`."""

    def _halves(self, y: Tensor) -> int:
        if not isinstance(y, Tensor) or y.dim() != 2 or y.shape[1] % 2:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{type(self).__name__}: got a state of {got}, expected (B, 2n), positions and "
                f"{'momenta' if isinstance(self, HamiltonianNet) else 'velocities'} side by side; try torch.cat"
            )
        return y.shape[1] // 2


def _check_scalar(owner: str, name: str, function: Any) -> None:
    if not callable(function):
        got = type(function).__name__
        raise TypeError(f"{owner}({name}=...): got a {got}, expected a module or function of (B, 2n) giving (B,)")


class HamiltonianNet(_Mechanics):
    r"""The field of a Hamiltonian, $\dot q = \partial H / \partial p$, $\dot p = -\partial H / \partial q$.

    Whatever the network $H$ has learned, it is conserved along the exact path; along a solver's path it drifts with the
    tolerance. Not for friction or other forces that take energy. The states must be canonical: momenta, not velocities.

    Source: S. Greydanus, M. Dzamba, J. Yosinski, arXiv 1906.01563.

    Args:
        energy: `energy(y, ...)`, one number per sample, `(B,)` or `(B, 1)`, of the state `(B, 2n)`, positions and
            momenta side by side; a module, twice differentiable (tanh, softplus, not ReLU), or a plain function.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> pendulum = ti.nn.HamiltonianNet(lambda y: y[:, 1] ** 2 / 2 - torch.cos(y[:, 0]))
        >>> start = torch.tensor([[1.0, 0.0]])
        >>> end = ti.odeint(pendulum, start, torch.tensor([0.0, 5.0])).value[-1]
        >>> torch.allclose(pendulum.energy(end), pendulum.energy(start), atol=1e-4)
        True
    """

    def __init__(self, energy: Callable):
        """Keeps the energy."""
        super().__init__()
        _check_scalar("HamiltonianNet", "energy", energy)
        self.energy = energy

    def forward(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        """The slope, `(B, 2n)`; further arguments are the energy's."""
        half = self._halves(y)
        slope = gradient(lambda y: self.energy(y, *args), y)
        return torch.cat((slope[:, half:], -slope[:, :half]), dim=1)


class LagrangianNet(_Mechanics):
    r"""The field of a Lagrangian, $\ddot q = (\partial_v^2 L)^{-1} (\partial_q L - (\partial_q \partial_v L)\, v)$.

    For states whose momenta are not known; the energy $v \cdot \partial_v L - L$ is conserved, see `energy`. An
    evaluation costs $n$ second derivatives and a linear solve of that size; where momenta are known, `HamiltonianNet`
    costs one gradient. A mass matrix $\partial_v^2 L$ that is singular has no acceleration: the slope of that sample is
    NaN, and `odeint` reports it as non-finite, with the time. Its gradient is poor where the matrix is nearly so: an
    untrained network does well with a multiple of $|v|^2$ added.

    Source: M. Cranmer et al., arXiv 2003.04630.

    Args:
        lagrangian: `lagrangian(y, ...)`, one number per sample, `(B,)` or `(B, 1)`, of the state `(B, 2n)`, positions
            and velocities side by side; a module, three times differentiable (tanh, softplus, not ReLU), or a plain
            function.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> pendulum = ti.nn.LagrangianNet(lambda y: y[:, 1] ** 2 / 2 + torch.cos(y[:, 0]))
        >>> y = torch.tensor([[1.0, 0.5]])
        >>> torch.allclose(pendulum(None, y), torch.tensor([[0.5, -0.84147]]))
        True
    """

    def __init__(self, lagrangian: Callable):
        """Keeps the Lagrangian."""
        super().__init__()
        _check_scalar("LagrangianNet", "lagrangian", lagrangian)
        self.lagrangian = lagrangian

    def forward(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        """The slope, velocities and accelerations, `(B, 2n)`; further arguments are the Lagrangian's."""
        half, v = self._halves(y), y[:, y.shape[1] // 2 :]
        slope, rows = self._second(y, args)
        force = slope[:, :half] - (rows[:, :, :half] @ v.unsqueeze(2)).squeeze(2)
        mass = rows[:, :, half:]
        acceleration, info = torch.linalg.solve_ex(mass, force)
        return torch.cat((v, torch.where((info == 0).unsqueeze(1), acceleration, torch.nan)), dim=1)

    def mass(self, y: Tensor, *args: Any) -> Tensor:
        r"""The mass matrix $\partial_v^2 L$ at states `(B, 2n)`: `(B, n, n)`."""
        half = self._halves(y)
        return self._second(y, args)[1][:, :, half:]

    def energy(self, y: Tensor, *args: Any) -> Tensor:
        r"""$v \cdot \partial_v L - L$ at states `(B, 2n)`: `(B,)`."""
        half = self._halves(y)
        value, vjp = linearise(lambda y: self.lagrangian(y, *args), y)
        return (y[:, half:] * vjp(torch.ones_like(value))[:, half:]).sum(1) - value.reshape(len(y))

    def _second(self, y: Tensor, args: tuple) -> tuple[Tensor, Tensor]:
        r"""The gradient of the Lagrangian, `(B, 2n)`, and that of every $\partial_{v_i} L$, `(B, n, 2n)`."""
        half = y.shape[1] // 2
        slope, vjp = linearise(lambda y: gradient(lambda y: self.lagrangian(y, *args), y), y)
        basis = torch.eye(2 * half, dtype=y.dtype, device=y.device)[half:]
        return slope, torch.stack([vjp(row.expand_as(slope)) for row in basis], dim=1)

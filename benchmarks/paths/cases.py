"""Differential equations to measure on: the same field for every library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp


@dataclass
class Case:
    """A problem.

    Attributes:
        name: of the row.
        field: `(t, y) -> dy/dt`, a module; `t` may have any shape that broadcasts.
        y0: start, `(B, n)`.
        end: the last time; the first one is 0.
        tol: relative and absolute tolerance.
        joint: whether this library makes steps of one size for the batch, as torchdiffeq does.
        in_jax: which of the fields of `jax_process.py` it is; None where that is not written.
    """

    name: str
    field: nn.Module
    y0: Tensor
    end: float
    tol: float
    joint: bool = True
    in_jax: str | None = None


class LotkaVolterra(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64))

    def forward(self, t, y):
        a, b, c, d = self.p.unbind()
        x, z = y[..., 0], y[..., 1]
        both = x * z
        return torch.stack((a * x - b * both, d * both - c * z), -1)


class VanDerPol(nn.Module):
    def __init__(self, mu):
        super().__init__()
        self.mu = nn.Parameter(torch.as_tensor(mu, dtype=torch.float64))

    def forward(self, t, y):
        return pol(t, y, self.mu)


def pol(t, y, mu):
    x, v = y[..., :1], y[..., 1:]
    return torch.cat((v, mu * (1 - x * x) * v - x), -1)


class Network(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        layers = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)]
        self.net = nn.Sequential(*layers)
        with torch.no_grad():
            for layer in layers[::2]:
                layer.weight *= scale

    def forward(self, t, y):
        return self.net(y)


class Flow(Network):
    """A flow with the logarithm of its density: by the exact trace, or by one probe (Hutchinson)."""

    def __init__(self, batch, exact):
        super().__init__(2.0)
        self.exact = exact
        self.register_buffer("probe", torch.randn(batch, 2).sign())

    def forward(self, t, y):
        z = y[:, :2]
        if self.exact:
            rows = torch.eye(2).unbind()
            slope, pull = vjp(self.net, z)[:2]
            trace = torch.stack([pull(row.expand_as(z))[0][:, i] for i, row in enumerate(rows)]).sum(0)
        else:
            slope, moved = jvp(self.net, (z,), (self.probe,))[:2]
            trace = (moved * self.probe).sum(1)
        return torch.cat((slope, -trace.unsqueeze(1)), 1)


def cases(quick: bool) -> list[Case]:
    """The problems of the speed."""
    torch.manual_seed(0)
    batch = 8 if quick else 256
    start = 1 + 0.5 * torch.rand(batch, 2, dtype=torch.float64)
    found = [Case(f"Lotka-Volterra, B {batch}", LotkaVolterra(), start, 1.0 if quick else 10.0, 1e-6, in_jax="lotka")]
    found.append(
        Case(f"van der Pol mu 2, B {batch}", VanDerPol(2.0), start, 1.0 if quick else 10.0, 1e-6, in_jax="pol")
    )
    sizes = (4,) if quick else (16, 512)
    found += [Case(f"MLP, B {size}", Network(2.0), torch.randn(size, 2), 1.0, 1e-5, in_jax="mlp") for size in sizes]
    if not quick:
        found.append(Case("van der Pol mu 100, B 16", VanDerPol(100.0), start[:16], 10.0, 1e-6))
    for exact in (True, False):
        size = 4 if quick else 512
        flow = Flow(size, exact)
        y0 = torch.cat((torch.randn(size, 2), torch.zeros(size, 1)), 1)
        found.append(Case(f"CNF {'exact' if exact else 'Hutchinson'}, B {size}", flow, y0, 1.0, 1e-5))
    return found


def mixed(quick: bool) -> tuple[Tensor, Tensor]:
    """Starts and stiffness of a batch of unlike van der Pol oscillators, mu from 0.1 to 16."""
    torch.manual_seed(0)
    batch = 8 if quick else 1024
    mu = 10 ** (torch.rand(batch, 1, dtype=torch.float64) * 2.2 - 1)
    return torch.rand(batch, 2, dtype=torch.float64) * 4 - 2, mu

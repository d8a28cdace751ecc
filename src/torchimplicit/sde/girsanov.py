r"""How far a process is from another one with the same diffusion (Girsanov's theorem).

The processes $dy = f\,dt + g\,dW$ and $dy = p\,dt + g\,dW$ have paths of laws $Q$ and $P$. With $g u = f - p$,

$$\log \frac{dQ}{dP} = \int u \cdot dW + \frac12 \int |u|^2 dt, \qquad KL(Q \| P) = E_Q\, \frac12 \int |u|^2 dt.$$

Where $f - p$ is not in the range of $g$ the laws have no path in common, and the divergence is infinite. The drifts of
both calculi differ by the same for both processes, so that $u$ is the same.

Source: B. Oksendal, Stochastic Differential Equations, 2003, theorem 8.6.8; for latent processes X. Li, T.-K. L. Wong,
R. T. Q. Chen, D. Duvenaud, Scalable Gradients for Stochastic Differential Equations, AISTATS 2020, section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.sde.bridge import Increment
from torchimplicit.sde.diffusion import NoiseKind


class Control(NamedTuple):
    """What turns one drift into another, through the diffusion.

    Attributes:
        u: the least squares solution of `g u = f - p`, `(B, m)`; zero where there is none.
        outside: whether there is none, `(B,)`.
    """

    u: Tensor
    outside: Tensor

    def rates(self) -> Tensor:
        """What a divergence grows by, finite, and whether it is infinite, as a small number or zero: `(B, 2)`."""
        rate = 0.5 * self.u.square().sum(1)
        over = torch.isposinf(rate)  # infinite, for all that this dtype knows
        rate = torch.where(over, 0.0, rate)
        mark = torch.finfo(rate.dtype).tiny ** 0.5  # nothing that an error estimate would feel
        return torch.stack((rate, (self.outside | over).to(rate.dtype) * mark), 1)


def control(f: Tensor, p: Tensor, g: Tensor, noise: NoiseKind) -> Control:
    """What turns the drift `p` into `f`.

    Args:
        f: a drift, `(B, n)`.
        p: another one.
        g: the diffusion of both, as `Diffusion.flatten` gives it.
        noise: of which kind it is.
    """
    eps, scale = torch.finfo(f.dtype).eps, f.abs() + p.abs()
    d = f - p
    if g.dim() == 2 and noise != "scalar":
        reached = g != 0
        u = torch.where(reached, d, 0.0) / torch.where(reached, g, 1.0)
        return Control(u, (~reached & (d.abs() > 8 * eps * scale)).any(1))
    u, apart = _along_one(d, g) if g.dim() == 2 else _least_squares(d, g)
    size = g.abs() if g.dim() == 2 else torch.linalg.vector_norm(g, dim=2)
    # Where noise comes, what it cannot do is known no better than the equations can be solved.
    loose = eps**0.5 * (scale + size * torch.linalg.vector_norm(u, dim=1, keepdim=True))
    bound = torch.where(size == 0, 8 * eps * scale, loose)
    outside = (apart.abs() > bound).any(1)
    return Control(torch.where(outside.unsqueeze(1), 0.0, u), outside)


def with_integral(end: Tensor, u: Tensor, path: Increment) -> Tensor:
    """The states at the end of a step with `u dW` of its start, as Ito has it, in the unknown before the last.

    Args:
        end: states, `(B, n)`.
        u: what multiplies the noise, `(B, m)`.
        path: the noise over the step, of at least so many Brownian motions.
    """
    y, kl, outside = end.tensor_split((-2, -1), 1)
    return torch.cat((y, kl + (u * path.W[:, : u.shape[1]]).sum(1, keepdim=True), outside), 1)


def _along_one(d: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The solution `(B, 1)` for one Brownian motion, by its column `(B, n)`, and what is left of `d`."""
    top = g.detach().abs().amax(1, keepdim=True)
    top = torch.where(top > 0, top, 1.0)
    column = g / top
    square = column.square().sum(1, keepdim=True)
    u = (column * d).sum(1, keepdim=True) / torch.where(square > 0, square, 1.0) / top
    return u, d - g * u


def _least_squares(d: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The solution `(B, m)` for matrices `(B, n, m)`, and what is left of `d`."""
    finite = g.isfinite().all(2).all(1)  # LAPACK refuses all matrices for one that is not
    inverse = torch.linalg.pinv(torch.where(finite[:, None, None], g, 0.0))
    u = (inverse @ d.unsqueeze(2)).squeeze(2)
    u = torch.where(finite.unsqueeze(1), u, torch.nan)
    return u, d - (g @ u.unsqueeze(2)).squeeze(2)

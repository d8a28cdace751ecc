"""Projections onto the exponential and the power cones: one root of one variable each, and Newton steps from it.

The root is found by bisection and Newton steps in turn, of which nothing is recorded. Two Newton steps from it,
recorded, leave the value and give it the derivatives of the implicit function up to the third order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.core import transforms

STEPS = 96  # every other one halves a bracket of up to 1400
EXPONENT = 700.0  # how far from where it begins an exponential may be followed in float64
NEWTON_STEPS, CLOSE = 2, 1e-6  # a longer step than that, at the end, is none: rounding left no root in the bracket


def project_exponential(v: Tensor) -> Tensor:
    r"""The nearest points of the closure of $\{(x, y, z): y > 0, y e^{x/y} \le z\}$, for rows `(..., 3)`.

    On the curved part of the boundary $v$ is the sum of a ray of the cone, $p\,(\rho, 1, e^\rho)$, and a ray of its
    polar, $d\,(1, 1 - \rho, -e^{-\rho})$. The first two coordinates give $p$ and $d$, both of which must be positive,
    as functions of $\rho$, and the third is one equation for $\rho$ (H. Friberg, Projection onto the exponential cone:
    a univariate root-finding problem, Optimization Methods and Software 38 (2023), theorem 1).
    """
    x, y, z = v.unbind(-1)
    ratio = torch.where(y > 0, x / torch.where(y > 0, y, 1), 0)
    inside = (y > 0) & (y * ratio.clamp(max=EXPONENT).exp() <= z) | (y == 0) & (x <= 0) & (z >= 0)
    polar_ratio = torch.where(x > 0, y / torch.where(x > 0, x, 1), 0)
    polar = (x > 0) & (x * (polar_ratio - 1).clamp(max=EXPONENT).exp() <= -z) | (x == 0) & (y <= 0) & (z <= 0)
    edge = (x <= 0) & (y <= 0)
    flat = torch.stack([x, torch.zeros_like(y), torch.relu(z)], -1)
    curved = ~(inside | polar | edge)
    example = torch.tensor([1.0, 1.0, 0.0], dtype=v.dtype, device=v.device)  # a row that is on the curved part
    boundary = _exponential_boundary(torch.where(curved.unsqueeze(-1), v, example))
    result = torch.where(curved.unsqueeze(-1), boundary, flat)
    result = torch.where(polar.unsqueeze(-1), 0, result)
    return torch.where(inside.unsqueeze(-1), v, result)


def _exponential_boundary(v: Tensor) -> Tensor:
    size = v.detach().abs().amax(-1, keepdim=True)
    x, y, z = (v / size).unbind(-1)

    def equation(rho: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The third coordinate's mismatch and its slope, both times what keeps them finite."""
        shrink = rho.detach().abs()
        up, down, level = (rho - shrink).exp(), (-rho - shrink).exp(), (-shrink).exp()
        value = ((rho - 1) * x + y) * up - (x - rho * y) * down - (rho * (rho - 1) + 1) * level * z
        slope = (rho * x + y) * up + (x + (1 - rho) * y) * down - (2 * rho - 1) * level * z
        return value, slope

    # Where p > 0 and d > 0: an interval, for both are linear in rho. The root is not far from the end nearer to zero.
    low = torch.where(x > 0, 1 - y / torch.where(x > 0, x, 1), -torch.inf)
    high = torch.where(y > 0, x / torch.where(y > 0, y, 1), torch.inf)
    nearest = low.clamp(min=0) + EXPONENT, high.clamp(max=0) - EXPONENT
    rho = _root(equation, torch.maximum(low, nearest[1]), torch.minimum(high, nearest[0]), x, y, z)
    square = rho * (rho - 1) + 1
    primal, dual = ((rho - 1) * x + y) / square, (x - rho * y) / square
    height = torch.where(rho > 0, z + dual * (-rho.clamp(min=0)).exp(), primal * rho.clamp(max=0).exp())
    return size * torch.stack([primal * rho, primal, height], -1)


def project_power(v: Tensor, alpha: tuple[float, ...]) -> Tensor:
    r"""The nearest points with $\prod_i x_i^{\alpha_i} \ge |z|$ and $x \ge 0$, for rows $(x, z)$, `(..., n)`.

    On the curved part of the boundary $x_i^* = \tfrac12 (x_i + \sqrt{x_i^2 + 4 \alpha_i r (|z| - r)})$ and
    $|z^*| = r$, with the one root $r$ in $(0, |z|)$ of $\prod_i (x_i^*)^{\alpha_i} = r$ (L. Hien, Differential
    properties of Euclidean projection onto power cone, Math. Methods Oper. Res. 82 (2015), proposition 2.2).
    """
    exponents = torch.tensor(alpha, dtype=v.dtype, device=v.device)
    x, z = v[..., :-1], v[..., -1]
    inside = (x >= 0).all(-1) & (_mean(x, exponents) >= z.abs())
    polar = (x <= 0).all(-1) & (_mean(-x / exponents, exponents) >= z.abs())
    flat = torch.cat([torch.relu(x), torch.zeros_like(v[..., :1])], -1)
    curved = ~(inside | polar | (z == 0))
    example = torch.cat([torch.zeros_like(exponents), torch.ones_like(exponents[:1])])
    boundary = _power_boundary(torch.where(curved.unsqueeze(-1), v, example), exponents)
    result = torch.where(curved.unsqueeze(-1), boundary, flat)
    result = torch.where(polar.unsqueeze(-1), 0, result)
    return torch.where(inside.unsqueeze(-1), v, result)


def _mean(x: Tensor, exponents: Tensor) -> Tensor:
    return x.detach().clamp(min=0).pow(exponents).prod(-1)


def _power_boundary(v: Tensor, exponents: Tensor) -> Tensor:
    size = v.detach().abs().amax(-1, keepdim=True)
    x, z = v[..., :-1] / size, v[..., -1] / size.squeeze(-1)
    height = z.abs()

    def raised(share: Tensor, x: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """`x*` at `r = share |z|`, and the root in its formula; no difference of near numbers where `x < 0`."""
        square = (4 * share * (1 - share) * height.square()).unsqueeze(-1) * exponents
        root = (x.square() + square).sqrt()
        return torch.where(x > 0, x + root, square / (root - x)) / 2, root

    def equation(logarithm: Tensor, x: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """`log r` less the logarithm of the product, which grows with the share's logarithm; and its slope."""
        share = logarithm.exp()
        point, root = raised(share, x, height)
        value = logarithm + height.log() - (exponents * point.log()).sum(-1)
        growth = exponents * (share * (1 - 2 * share) * height.square()).unsqueeze(-1) / root
        return value, 1 - (exponents * growth / point).sum(-1)

    share = _root(equation, torch.full_like(height, -EXPONENT / 2), torch.zeros_like(height), x, height).exp()
    point, _ = raised(share, x, height)
    return size * torch.cat([point, (share * z).unsqueeze(-1)], -1)


def _root(equation: Callable[..., tuple[Tensor, Tensor]], low: Tensor, high: Tensor, *given: Tensor) -> Tensor:
    """The root between two bounds of a function that grows through it, with the derivatives by what is given."""
    held, low, high = [tensor.detach() for tensor in given], low.detach(), high.detach()
    root = (low + high) / 2
    for step in range(STEPS):
        value, slope = equation(root, *held)
        low, high = torch.where(value < 0, root, low), torch.where(value < 0, high, root)
        arrived = (value / slope).abs() <= CLOSE * (1 + root.abs())  # not where NaN
        newton = (root - value / slope).clamp(low, high)
        if not transforms.active() and bool(arrived.all()):
            root = newton
            break
        inside = (newton > low) & (newton < high) if step % 2 == 0 else arrived
        root = torch.where(inside, newton, (low + high) / 2)
    for _ in range(NEWTON_STEPS):
        value, slope = equation(root, *given)
        sound = (value / slope).detach().abs() <= CLOSE * (1 + root.detach().abs())  # not where NaN
        root = root - torch.where(sound, value, 0) / torch.where(sound, slope, 1)
    return root

"""Is the noise of the kind that was said? By experiment, once a solve, at states a little closer to zero than a start.

What is asked for is a comparison, in the units of every unknown, that rounding does not decide: weights are powers of
two where the answer may be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from torchimplicit.core.independence import PLAY, noise
from torchimplicit.core.transforms import remembered_if_small
from torchimplicit.sde.diffusion import NoiseKind

Structure = Literal["additive", "commuting", "general"]
Rows = Callable[[Tensor], Tensor]  # a diffusion of states (B, n), as rows (B, n) or matrices (B, n, m)


def structure_of(kind: NoiseKind, diffusion: Rows, y: Tensor) -> Structure:
    """Which of the structures that orders depend on a diffusion has: what was said, unless it is seen not to be so.

    One evaluation of a diagonal or general diffusion, and two products with its transposed Jacobian.

    Args:
        kind: what was said; of "additive" see `sees_state`.
        diffusion: at some time.
        y: states, `(B, n)`.
    """
    if kind in ("additive", "scalar") or not y.numel():
        return "additive" if kind == "additive" else "commuting"
    if kind == "diagonal" and y.shape[1] == 1:
        return "commuting"
    with torch.enable_grad():
        leaf = moved(y).requires_grad_()
        value = diffusion(leaf)
    if not value.requires_grad or (value.dim() == 3 and value.shape[2] == 1):
        return "commuting"
    seen = _sees_others(value, leaf) if kind == "diagonal" else _brackets(value, leaf)
    return "general" if seen else "commuting"


def sees_state(diffusion: Rows, y: Tensor, other: Tensor) -> bool:
    """Whether a diffusion's values change with the state: two evaluations, and a third where they do.

    Args:
        diffusion: at some time.
        y: states, `(B, n)`; what is asked for is a little closer to zero.
        other: states that a path has come to, `(B, n)`, where a step may show that is even around `y`.
    """
    start = moved(y)
    before, after = diffusion(start), diffusion(torch.where(other.isfinite() & (other != y), other, y))
    if torch.equal(before, after):
        return False
    return _differ(after, before) and not _differ(diffusion(start), before)  # by chance, such as dropout's


def moved(y: Tensor) -> Tensor:
    """States every number of which is closer to zero, by up to a half; zeros leave it by a little.

    So that what was positive, below one or in a ball stays there.
    """
    part = 0.5 * noise(y).abs().frac()
    size = y.abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
    return torch.where(y == 0, 0.1 * part * size.masked_fill(size == 0, 1), torch.addcmul(y, part, y, value=-1))


def _sees_others(value: Tensor, leaf: Tensor) -> bool:
    r"""Whether a coefficient `g_i` depends on another unknown than `y_i`.

    With weights $c$, $\sum_i c_i \partial_l g_i$ is $c_l$ times $\sum_i \partial_l g_i$ where they do not; to the bit
    where unknowns go their own ways, for the weights are signs and powers of two, which rounding does not feel.
    """
    weight = torch.ldexp(torch.ones_like(value), -_exponent(value.detach()))
    c = _weights(value.shape, value.dtype, value.device)
    (plain,) = torch.autograd.grad(value, leaf, weight, retain_graph=True, materialize_grads=True)
    (weighted,) = torch.autograd.grad(value, leaf, c * weight, materialize_grads=True)
    return _differ(weighted, c * plain)


@remembered_if_small
def _weights(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Signs and powers of two, `(B, n)`."""
    place = torch.arange(shape[1], device=device).expand(shape).clone()
    place[1::2] //= 16  # sixteen weights are told apart by one sample, and those of the same place by the next
    place %= 16
    return torch.ldexp((1 - 2 * (place % 2)).to(dtype), place // 2)


def _brackets(value: Tensor, leaf: Tensor) -> bool:
    r"""Whether columns do not commute, $(g_j \cdot \nabla) g_k \neq (g_k \cdot \nabla) g_j$.

    It is linear in either column, so two random sums of them show it, by a random sum of its entries.
    """
    g = value.detach()
    a, b = noise(g.new_empty(2, len(g), 1, g.shape[2]))
    weight = torch.ldexp(noise(leaf), -_exponent(g.abs().amax(2))).unsqueeze(2)
    (along_b,) = torch.autograd.grad(value, leaf, weight * a, retain_graph=True, materialize_grads=True)
    (along_a,) = torch.autograd.grad(value, leaf, weight * b, materialize_grads=True)
    one, other = along_b * (g * b).sum(2), along_a * (g * a).sum(2)
    size = (one.abs() + other.abs()).sum(1)
    return bool(((one - other).sum(1).abs() > _play(g) * size).logical_and(size < torch.inf).any())


def _differ(a: Tensor, b: Tensor) -> bool:
    size = a.abs() + b.abs()
    return bool(((a - b).abs() > _play(a) * size).logical_and(size < torch.inf).any())


def _play(like: Tensor) -> float:
    """A relative difference that may be rounding."""
    eps = torch.finfo(like.dtype).eps
    return max(8 * eps, min(PLAY * eps, 2.0**-7))


def _exponent(size: Tensor) -> Tensor:
    """Of two, of numbers' sizes; 0 for those that have none, and not beyond what half precision holds."""
    most = 8 if torch.finfo(size.dtype).bits == 16 else 60
    return torch.where(size.isfinite() & (size != 0), torch.frexp(size).exponent, 0).clamp(-most, most)

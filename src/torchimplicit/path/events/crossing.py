"""Where functions of one number change their sign, a whole batch of them at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def crossing(value: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, wanted: Tensor) -> Tensor:
    """Where functions of a number in [0, 1], one per sample, change sign: to rounding, all samples at once.

    Bisection, and inverse quadratic interpolation where that is safe: T. Chandrupatla, Adv. Eng. Softw. 28 (1997) 145.

    Args:
        value: the functions, of `(B,)`.
        low: their values at 0, `(B,)`.
        high: their values at 1, of the other sign or zero.
        wanted: which samples matter.
    """
    eps = 2 * torch.finfo(low.dtype).eps
    a, fa, b, fb = torch.ones_like(low), high, torch.zeros_like(low), low
    c, fc, theta = b, fb, torch.full_like(low, 0.5)
    best = a
    for _ in range(100):
        best, least = torch.where(fa.abs() < fb.abs(), a, b), torch.minimum(fa.abs(), fb.abs())
        limit = eps / (b - a).abs()
        if bool(((limit > 0.5) | (least == 0) | ~wanted).all()):
            break
        x = a + theta * (b - a)
        fx = value(x)
        same = fx.sign() == fa.sign()
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        curved = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        limit = (eps / (b - a).abs()).clamp_max(0.5)
        theta = torch.minimum(torch.maximum(torch.where(safe, curved, 0.5), limit), 1 - limit)
    return best

"""Functions that kernels make of fewer operations than torch does, to the rounding of their dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

LAST = 9.01  # beyond which tanh is one, in single precision


def tanh(x: Tensor) -> Any:
    r"""The hyperbolic tangent on a CPU in single precision, to four units in the last place.

    That of half the argument is six terms of Lambert's continued fraction,
    $\tanh z = z / (1 + z^2 / (3 + z^2 / (5 + \dots)))$, a quotient $p / q$ of polynomials; then
    $\tanh 2z = 2pq / (p^2 + q^2)$. No exponential and one division: a third of the time that torch's takes, in which
    networks of some hundred numbers spend half of theirs.

    Source: J. H. Lambert, Memoire sur quelques proprietes remarquables des quantites transcendentes, 1768.
    """
    if x.dtype is not torch.float32 or x.device.type != "cpu":
        return NotImplemented
    z = x.mul(0.5).clamp(-LAST / 2, LAST / 2)
    u = z * z
    p, q = z * ((21 * u + 1260) * u + 10395), ((u + 210) * u + 4725) * u + 10395
    return torch.where(x.abs() < LAST, 2 * p * q / (p * p + q * q), x.clamp(-1, 1))


@cache
def decompositions() -> dict[Any, Callable]:
    """What operations are made of in kernels: torch's own table, and the functions here."""
    from torch._inductor.decomposition import select_decomp_table  # not before something is compiled: it is large

    return {**select_decomp_table(), torch.ops.aten.tanh.default: tanh}

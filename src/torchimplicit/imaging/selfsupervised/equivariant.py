"""Equivariant imaging: what a reconstruction of a turned image owes to the turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.imaging.selfsupervised.group import Group
from torchimplicit.sde.seeds import Seed


def equivariant_loss(
    reconstruct: Callable[[Tensor, Any], Tensor],
    y: Tensor,
    op: Any,
    group: Group,
    *,
    weight: float = 1.0,
    seed: Seed = None,
) -> Tensor:
    r"""Consistency and equivariance, $|A x - y|^2 / m + \alpha\, |T_g x - R(A T_g x, A)|^2 / n$ with $x = R(y, A)$.

    Measurements alone say nothing of an operator's null space. That turned, flipped or shifted images are images, too,
    does, unless the operator commutes with the group. The first term takes the noise for signal: where there is
    much, take `sure_loss` in its place, and weight this one's `weight=...` against it by hand. Both terms vanish for
    whatever reconstructs all images of a set that the group leaves as it is.

    Source: D. Chen, J. Tachella, M. Davies, ICCV (2021, arXiv 2103.14756), equation 9.

    Args:
        reconstruct: $R$, `reconstruct(y, op) -> x`.
        y: measurements, `(B, ...)`; m of them a sample.
        op: $A$, with `A` and `A_adjoint`.
        group: $T$: `QuarterTurn()`, `Flip()`, `Shift()`, or any callable `(x, seed)` that transforms every sample.
        weight: $\alpha \ge 0$.
        seed: of the elements: an int, from which every sample has one of its own, or one per sample, `(B,)` int64.

    Returns:
        A loss per sample, `(B,)`.

    Raises:
        TypeError: no group.
        ValueError: a negative weight, or a group that changes the shape.
    """
    if not callable(group):
        got = type(group).__name__
        raise TypeError(f"equivariant_loss(group=...): got a {got}, expected a group; try ti.imaging.Flip()")
    if not (is_number(weight) and weight >= 0):
        raise ValueError(f"equivariant_loss(weight={weight!r}): expected a number >= 0")
    x = reconstruct(y, op)
    turned = group(x, seed)
    if turned.shape != x.shape:
        raise ValueError(f"equivariant_loss: the group made {tuple(turned.shape)} of images {tuple(x.shape)}")
    again = reconstruct(op.A(turned), op)
    return _mean_square(op.A(x) - y) + weight * _mean_square(turned - again)


def _mean_square(x: Tensor) -> Tensor:
    return x.abs().square().flatten(1).mean(1)

r"""Isotonic regression: the projection onto nondecreasing vectors, by pooling all adjacent violators at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.batch import Batch, Label


@public
def isotonic(x: Tensor, weights: Tensor | None = None, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest nondecreasing vector, $\min_y \sum_i w_i (y_i - x_i)^2$ with $y_1 \le \dots \le y_n$, exactly.

    The solution is the mean of $x$ over blocks. Two neighbouring blocks in the wrong order belong to one, so that a
    round can pool all such pairs, of all samples, side by side; it ends when none is left. A round costs $O(n)$.
    Measured: on noise 5 of them for 10 entries and 17 for 10 000, on random walks 6 and 169; at worst there are $n$.

    The derivative is that of the blocks' means; blocks of equal means stay apart. Every result is nondecreasing without
    a tolerance. For a decreasing vector flip `x`.

    Source: M. Ayer and others, Annals of Mathematical Statistics 26 (1955) 641, for the pooling.

    Args:
        x: points `(..., n)`.
        weights: $w > 0$, `(n,)` or `(..., n)`; None weighs all alike.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a weight is not positive, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection
        >>> projection.isotonic(torch.tensor([[1.0, 3.0, 2.0, 4.0]]))
        tensor([[1.0000, 2.5000, 2.5000, 4.0000]])
    """
    batch = Batch("isotonic", x, fault="a weight is not positive", on_failure=on_failure)
    mass = batch.vector("weights", torch.ones_like(batch.x) if weights is None else weights)
    bad = mass.detach() <= 0
    batch.refuse(bad.any(-1) if bad.dim() else bad, "weights > 0")
    x, mass = torch.broadcast_tensors(batch.x, mass)
    mass = mass / mass.detach().amax(-1, keepdim=True)  # of no derivative: only their ratios matter
    block: Any = Label.apply(_blocks, x.detach(), mass.detach())
    y = _means(x, mass, block).gather(-1, block)
    return batch.finish(y, *_missed(x.detach(), y.detach(), mass.detach(), block))


def _missed(x: Tensor, y: Tensor, mass: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the conditions of optimality are missed `(..., 1)`, and the rounding to be expected.

    The sums of $w (x - y)$ up to every place are the multipliers: never negative, and zero where a block ends. That
    means are in order is what the last round has seen.
    """
    multiplier = (mass * (x - y)).cumsum(-1)
    ends = torch.nn.functional.pad(block.diff(dim=-1) != 0, (0, 1), value=True)
    missed = torch.where(ends, multiplier.abs(), -multiplier).amax(-1, keepdim=True)
    play = 4 * torch.finfo(x.dtype).eps * (x.shape[-1] + 8) * (mass * x).abs().sum(-1, keepdim=True)
    return missed, play


def _blocks(x: Tensor, mass: Tensor) -> Tensor:
    """The number of the block of every entry, `(..., n)`: pools until the means of the blocks are in order."""
    block = torch.arange(x.shape[-1], device=x.device).expand(x.shape).contiguous()
    while True:
        means = _means(x, mass, block).gather(-1, block)
        # Inside a block the means are the same, so that only its ends can be out of order.
        apart = (block[..., 1:] != block[..., :-1]) & (means[..., 1:] >= means[..., :-1])
        pooled = torch.nn.functional.pad(apart.cumsum(-1), (1, 0))
        if torch.equal(pooled, block):
            return block
        block = pooled


def _means(x: Tensor, mass: Tensor, block: Tensor) -> Tensor:
    """The weighted mean of every block, `(..., n)`; beyond the last block anything finite."""
    nothing = torch.zeros_like(x)
    total = nothing.scatter_add(-1, block, mass * x)
    size = nothing.scatter_add(-1, block, mass)
    return total / torch.where(size > 0, size, 1)

"""Causal attention that can be differentiated twice: scores by position, rotation, and the product itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import is_count, require


class DistanceBias(nn.Module):
    """A learned number for every head and distance, added to the scores; the causal mask comes with it.

    At first the numbers fall with the distance, steeply in the first head and hardly in the last: where all are alike
    training must first find the neighbours, and a thousand steps go by.
    Source of the slopes: O. Press, N. Smith, M. Lewis, ALiBi, ICLR 2022, arXiv 2108.12409, section 3.

    Args:
        heads: number of heads.
        length: distances are below it: positions of a sequence and of its memory together.

    Raises:
        ValueError: `length` is no integer >= 1.
    """

    def __init__(self, heads: int, length: int | None):
        """A slope for every head."""
        super().__init__()
        self.length = length
        require(
            self,
            "length",
            is_count(length),
            "an integer >= 1, the longest sequence and its memory; try positions='rotary', which needs none",
        )
        slopes = 2.0 ** (-8 * torch.arange(heads) / heads)
        self.bias = nn.Parameter(-torch.outer(slopes, torch.arange(length or 0)))

    def forward(self, queries: int, keys: int) -> Tensor:
        """What to add to the scores `(B, heads, queries, keys)`: `(heads, queries, keys)`, -inf at what comes later.

        Raises:
            ValueError: there are more keys than distances.
        """
        if keys > self.bias.shape[1]:
            raise ValueError(
                f"got {queries} positions and a memory of {keys - queries}, expected no more than "
                f"length={self.bias.shape[1]} together; try length={keys}, or positions='rotary'"
            )
        # Row by row the distances shift by one: windows of one line, which ends in what comes later.
        line = F.pad(self.bias[:, :keys].flip(1), (0, queries - 1), value=-math.inf)
        return line.unfold(1, keys, 1).flip(1)


def causal(queries: int, keys: int, like: Tensor) -> Tensor:
    """0 where query i may see key j, the last query all of them, -inf elsewhere: `(queries, keys)`."""
    later = torch.full((queries, keys), -math.inf, dtype=like.dtype, device=like.device)
    return later.triu(keys - queries + 1)


def rotated(x: Tensor, first: int = 0) -> Tensor:
    """`x`, `(B, heads, T, n)`, rotated by position, from `first` on: products of two depend on their distance alone.

    Source: J. Su et al., RoFormer, arXiv 2104.09864, section 3.2.2, with the two halves of a head as the pairs.
    """
    half = x.shape[-1] // 2
    places = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float64)
    rates = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = torch.outer(places, rates)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.split(half, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention of `(B, heads, T, n)` to `(B, heads, S, n)`, with a bias that broadcasts to `(B, heads, T, S)`.

    Plain products in place of `scaled_dot_product_attention`: its fast kernels cannot be differentiated twice, which a
    Jacobian penalty and Newton's method ask for.
    """
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2) + bias
    return scores.softmax(-1).to(value.dtype) @ value

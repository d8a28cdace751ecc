"""The transformer's block as the cell of an equilibrium."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import require, require_count
from torchimplicit.nn.cells.attention import DistanceBias, attend, causal, rotated
from torchimplicit.nn.parts.dropout import VariationalDropout

PARTS = 4  # of the injection: queries, keys, values, and the sum that the first norm sees


class TransformerInjection(nn.Linear):
    """The share of the input in a `TransformerCell`: linear in the input alone, and so computed once a solve.

    Args:
        inputs: features of the input `(B, T, inputs)`; the result has `4 * width`.
        width: of the cell.

    Raises:
        ValueError: a number is impossible.
    """

    def __init__(self, inputs: int, width: int):
        """Draws weights that keep the input's size."""
        require_count("TransformerInjection", inputs=inputs, width=width)
        super().__init__(inputs, PARTS * width)
        nn.init.normal_(self.weight, std=inputs**-0.5)
        nn.init.zeros_(self.bias)


class TransformerCell(nn.Module):
    r"""A causal transformer block with input injection: its equilibrium is a transformer of infinite depth.

    With $x = (x_q, x_k, x_v, x_r)$ from `TransformerInjection` and norms $N$ over the features,

    $$y = N_1\bigl(z + x_r + W_o\,\mathrm{attend}(W z + (x_q, x_k, x_v))\bigr), \qquad
      f(z, x) = N_2\bigl(y + W_2\,\mathrm{relu}(W_1 y)\bigr).$$

    The paper injects into queries, keys and values only. A state then barely moves where attention averages over much,
    and the map is close to the identity there; $x_r$, as long as the state, makes the first norm divide, so that the
    cell contracts when training begins. Afterwards nothing but `jacobian_penalty` and the solver's tolerance keep it
    from ceasing to: watch the reports.

    Positions are learned numbers by head and distance, added to the scores: the simplest relative positions, cheap at
    every evaluation, whereas the sinusoidal terms of Transformer-XL cost a further product with the queries.
    "rotary" has no parameters and no longest sequence.

    Not for sequences so long that their `T x T` scores are the cost: see `TrellisCell`.

    Source: S. Bai, J. Z. Kolter, V. Koltun, NeurIPS 2019, arXiv 1909.01377, section 4; memory by Z. Dai et al.,
    Transformer-XL, ACL 2019, arXiv 1901.02860, section 3.2.

    Args:
        width: features of the state.
        heads: of the attention; divides the width.
        hidden: units between the two dense layers; `4 * width` where None.
        positions: "relative" or "rotary".
        length: the longest sequence and its memory together; needed by "relative".
        norm: "post", as above: the state stays bounded whatever the weights. "pre" normalises what attention and dense
            layers see, not the sum: for layers in a row. As an equilibrium these must cancel each other and the
            input, and it diverges without a penalty (arXiv 2106.14342).
        dropout: probability of a feature to be zeroed after the attention and after the dense layers, at all positions
            alike and the same throughout a solve.

    Raises:
        ValueError: a number is impossible, or heads do not fit.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> inject, cell = (
        ...     ti.nn.TransformerInjection(5, 16),
        ...     ti.nn.TransformerCell(16, heads=2, length=24),
        ... )
        >>> layer = ti.nn.DEQ(cell, init=cell.start)
        >>> x = inject(torch.randn(3, 12, 5))
        >>> z = layer(x)
        >>> z.shape, layer.report.converged
        (torch.Size([3, 12, 16]), True)

        The next segment of the same sequences sees this one:

        >>> memory = cell.recall(z.detach(), x.detach())
        >>> layer(inject(torch.randn(3, 12, 5)), memory).shape
        torch.Size([3, 12, 16])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int | None = None,
        *,
        positions: Literal["relative", "rotary"] = "relative",
        length: int | None = None,
        norm: Literal["post", "pre"] = "post",
        dropout: float = 0.0,
    ):
        """Draws the weights."""
        super().__init__()
        self.width, self.heads, self.hidden = width, heads, 4 * width if hidden is None else hidden
        self.positions, self.length, self.norm = positions, length, norm
        self._check()
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, self.hidden), nn.Linear(self.hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = VariationalDropout(dropout, shared=(1,))
        self.distances = DistanceBias(heads, length) if positions == "relative" else None
        for linear in (self.project, self.out, self.up, self.down):
            nn.init.normal_(linear.weight, std=0.5 * linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, z: Tensor, x: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """The next state.

        Args:
            z: state, `(B, T, width)`.
            x: what `TransformerInjection` makes of the input, `(B, T, 4 * width)`; None for none, in layers in a row.
            memory: what `recall` makes of the segment before, `(B, M, 2 * width)`.

        Raises:
            ValueError: state, `x` or the memory has another shape, or sequence and memory are longer than `length`.
        """
        self._check_shapes(z, x, memory)
        before = self.norm == "pre"
        total = z if x is None else z + x[..., 3 * self.width :]
        y = total + self.dropout(self._attention(self.norm1(z) if before else z, x, memory))
        y = y if before else self.norm1(y)
        result = y + self.dropout(self.down(F.relu(self.up(self.norm2(y) if before else y))))
        return result if before else self.norm2(result)

    def recall(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The keys and values by which the next segment remembers this one; computed once a solve, not in it.

        To remember several segments, recall their states together, joined along `M`: "rotary" keys know how far the end
        is, and memories of two segments side by side would take both for the last.

        Args:
            z: the states to remember, `(B, M, width)`; detached, unless gradients shall flow into earlier segments.
            x: their injection, `(B, M, 4 * width)`, likewise.

        Returns:
            `(B, M, 2 * width)`, in the graph of the cell's weights.
        """
        weight, bias = (part[self.width :] for part in (self.project.weight, self.project.bias))
        both = F.linear(self.norm1(z) if self.norm == "pre" else z, weight, bias)
        both = both if x is None else both + x[..., self.width : 3 * self.width]
        if self.positions == "relative":
            return both
        key, value = both.chunk(2, -1)
        return torch.cat((_merged(rotated(self._split(key), -z.shape[1])), value), -1)

    def start(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Where a solve begins: zeros, `(B, T, width)`. For `DEQ(cell, init=cell.start)`."""
        return x.new_zeros(*x.shape[:-1], self.width)

    def _attention(self, z: Tensor, x: Tensor | None, memory: Tensor | None) -> Tensor:
        projected = self.project(z)
        if x is not None:
            projected = projected + x[..., : 3 * self.width]
        query, key, value = map(self._split, projected.chunk(3, -1))
        if self.positions == "rotary":
            query, key = rotated(query), rotated(key)
        if memory is not None:
            old = map(self._split, memory.to(key.dtype).chunk(2, -1))
            key, value = (torch.cat(pair, 2) for pair in zip(old, (key, value), strict=True))
        sizes = query.shape[2], key.shape[2]
        bias = causal(*sizes, like=query) if self.distances is None else self.distances(*sizes)
        return self.out(_merged(attend(query, key, value, bias)))

    def _split(self, x: Tensor) -> Tensor:
        """`(B, heads, T, n)` of `(B, T, width)`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _check(self) -> None:
        require_count(self, "width", "heads", "hidden")
        require(self, "heads", self.width % self.heads == 0, f"a divisor of width={self.width}")
        require(self, "positions", self.positions in ("relative", "rotary"), "'relative' or 'rotary'")
        require(self, "norm", self.norm in ("post", "pre"), "'post' or 'pre'")
        if self.positions == "rotary":
            size = self.width // self.heads
            even = f"'relative' where a head has an odd number of features, here {size}; or try other heads"
            require(self, "positions", size % 2 == 0, even)

    def _check_shapes(self, z: Tensor, x: Tensor | None, memory: Tensor | None) -> None:
        if z.dim() != 3 or z.shape[-1] != self.width:
            raise ValueError(
                f"TransformerCell(width={self.width}): got a state of shape {tuple(z.shape)}, expected "
                f"(B, T, {self.width}); one sequence alone is a batch of one"
            )
        expected = (*z.shape[:-1], PARTS * self.width)
        if x is not None and x.shape != expected:
            raise ValueError(
                f"TransformerCell(width={self.width}): got x of shape {tuple(x.shape)} for a state of "
                f"{tuple(z.shape)}, expected {expected}; try TransformerInjection, which makes it from the input"
            )
        if memory is not None and (memory.dim() != 3 or memory.shape[::2] != (len(z), 2 * self.width)):
            raise ValueError(
                f"TransformerCell(width={self.width}): got a memory of shape {tuple(memory.shape)}, expected "
                f"({len(z)}, M, {2 * self.width}); try cell.recall"
            )


def _merged(x: Tensor) -> Tensor:
    """`(B, T, width)` of `(B, heads, T, n)`."""
    return x.transpose(1, 2).flatten(2)

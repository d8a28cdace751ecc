"""Language models: the equilibrium of a transformer block or of a trellis network's layer, and blocks in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import require, require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import (
    DEQ,
    TransformerCell,
    TransformerInjection,
    TransformerStack,
    TrellisCell,
    TrellisInjection,
)
from torchimplicit.solve import Anderson, Solver

Memory = Any  # what a network keeps of a segment: nested tensors with the batch in front, detached


class LanguageNetwork(nn.Module):
    """Base of the language models: embedding, a body that a subclass gives, and the head.

    Args:
        vocabulary: number of tokens.
        width: of an embedded token and of the body's features.
        length: the longest segment and its memory together; None for any.
        cutoffs: where given, the head is torch's `AdaptiveLogSoftmaxWithLoss` with them: for large vocabularies whose
            tokens are numbered by frequency.
    """

    def __init__(self, vocabulary: int, width: int, length: int | None, cutoffs: Sequence[int] = ()):
        """Draws the weights."""
        super().__init__()
        self.vocabulary, self.width, self.length, self.cutoffs = vocabulary, width, length, list(cutoffs)
        require_count(self, "vocabulary", "width")
        rising = self.cutoffs == sorted(set(self.cutoffs)) and all(0 < cut < vocabulary for cut in self.cutoffs)
        require(self, "cutoffs", rising, f"rising numbers below the vocabulary of {vocabulary}, or none")
        least = 4 ** len(self.cutoffs)  # the head divides the width by four from one group to the next
        require(self, "width", width >= least, f"at least {least}, for {len(self.cutoffs)} cutoffs")
        self.embedding = nn.Embedding(vocabulary, width)
        self.head: Any = (
            nn.AdaptiveLogSoftmaxWithLoss(width, vocabulary, self.cutoffs) if cutoffs else nn.Linear(width, vocabulary)
        )

    def body(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Features and the next memory of embedded tokens, both `(B, T, width)`, and the last memory."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, memory: Memory = None) -> tuple[Tensor, Memory]:
        """Features `(B, T, width)` of tokens `(B, T)`, and the memory for the next segment."""
        return self.body(self.embedding(tokens), memory)

    def losses(self, features: Tensor, said: Tensor) -> Tensor:
        """Negative log-likelihoods `(B T,)` of the tokens `(B, T)` that come next."""
        features, said = features.flatten(0, 1), said.flatten()
        if self.cutoffs:
            return -self.head(features, said).output
        return F.cross_entropy(self.head(features).float(), said, reduction="none")

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Of every token to be the next, `(B, T, vocabulary)`."""
        if self.cutoffs:
            return self.head.log_prob(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return self.head(features).float().log_softmax(-1)


class DEQTransformer(LanguageNetwork):
    """The equilibrium of transformer blocks, which see the last segment's states, too; see `TransformerStack`.

    Args:
        vocabulary: number of tokens.
        width: of the equilibrium.
        heads: of its attention.
        hidden: of its dense layers.
        blocks: in the cell, in a row.
        length: the longest segment and its memory together.
        positions: see `TransformerCell`.
        dropout: see `TransformerCell`.
        cutoffs: see `LanguageNetwork`.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        on_failure: of the layer. "ignore", as `LanguageModel` counts what does not converge and says so once an epoch.
    """

    def __init__(
        self,
        vocabulary: int = 65,
        width: int = 128,
        heads: int = 4,
        hidden: int | None = None,
        blocks: int = 1,
        length: int = 256,
        positions: Literal["relative", "rotary"] = "relative",
        dropout: float = 0.0,
        cutoffs: Sequence[int] = (),
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__(vocabulary, width, length, cutoffs)
        require_count("DEQTransformer", blocks=blocks)
        options: dict[str, Any] = {"positions": positions, "length": length, "dropout": dropout}
        cell = TransformerStack([TransformerCell(width, heads, hidden, **options) for _ in range(blocks)])
        self.inject = TransformerInjection(width, width)
        self.equilibrium = DEQ(cell, solver, adjoint, init=cell.start, on_failure=on_failure)

    def body(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The equilibrium; the memory is what every block saw there, and the injection."""
        cell: Any = self.equilibrium.cell
        x = self.inject(x)
        memories = () if memory is None else cell.recall(memory[:-1], memory[-1])
        z = self.equilibrium(x, *memories)
        with torch.no_grad():
            return z, (*cell.inputs(z.detach(), x, *memories), x.detach())


class TransformerNetwork(LanguageNetwork):
    """The explicit rival of `DEQTransformer`: blocks in a row, each with weights of its own, norms before the layers.

    Args:
        vocabulary: number of tokens.
        width: of the blocks.
        heads: of their attention.
        hidden: of their dense layers.
        layers: how many blocks.
        length: the longest segment and its memory together.
        positions: see `TransformerCell`.
        norm: see `TransformerCell`.
        dropout: see `TransformerCell`.
        cutoffs: see `LanguageNetwork`.
    """

    def __init__(
        self,
        vocabulary: int = 65,
        width: int = 44,
        heads: int = 2,
        hidden: int | None = None,
        layers: int = 12,
        length: int = 256,
        positions: Literal["relative", "rotary"] = "relative",
        norm: Literal["post", "pre"] = "pre",
        dropout: float = 0.0,
        cutoffs: Sequence[int] = (),
    ):
        """Draws the weights."""
        super().__init__(vocabulary, width, length, cutoffs)
        self.layers = layers
        require_count(self, "layers")
        options: dict[str, Any] = {"positions": positions, "length": length, "norm": norm, "dropout": dropout}
        self.blocks = nn.ModuleList(TransformerCell(width, heads, hidden, **options) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()

    def body(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The last block's states; the memory is what every block saw."""
        seen = []
        for i, block in enumerate(self.blocks):
            seen.append(x.detach())
            x = block(x, None, None if memory is None else block.recall(memory[i]))  # type: ignore[operator]
        return self.norm(x), tuple(seen)


class DEQTrellis(LanguageNetwork):
    """The equilibrium of a trellis network's layer; see `TrellisCell`.

    Args:
        vocabulary: number of tokens.
        width: of the equilibrium.
        kernel_size: see `TrellisCell`.
        dilation: see `TrellisCell`.
        dropout: see `TrellisCell`.
        cutoffs: see `LanguageNetwork`.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        on_failure: see `DEQTransformer`.
    """

    def __init__(
        self,
        vocabulary: int = 65,
        width: int = 128,
        kernel_size: int = 2,
        dilation: int = 1,
        dropout: float = 0.0,
        cutoffs: Sequence[int] = (),
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__(vocabulary, width, None, cutoffs)
        cell = TrellisCell(width, kernel_size, dilation, dropout=dropout)
        self.inject = TrellisInjection(width, width, kernel_size, dilation)
        self.equilibrium = DEQ(cell, solver, adjoint, init=cell.start, on_failure=on_failure)

    def body(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The hidden states of the equilibrium; the memory is the last states and the last inputs."""
        cell: Any = self.equilibrium.cell
        *states, inputs = memory or (x.new_zeros(len(x), cell.reach, self.width),)
        arguments = (tuple(states),) if states else ()
        state = self.equilibrium(self.inject(x, inputs), *arguments)
        inputs = torch.cat((inputs, x), 1)[:, -cell.reach :].detach()
        return state[0], (*cell.remember(state, *arguments), inputs)

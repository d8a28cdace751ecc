"""Several transformer blocks in a row as the cell of one equilibrium."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torchimplicit.nn.cells.transformer import TransformerCell


class TransformerStack(nn.Module):
    r"""Different transformer blocks in a row as one map: its equilibrium repeats all of them for ever.

    $$f(z, x) = f_k(\dots f_2(f_1(z, x))), \qquad f_i \text{ a } \texttt{TransformerCell}$$

    The input enters the first block. With as many parameters two narrow blocks say more than a wide one: on characters
    of Shakespeare (recipe `text`) the equilibrium of two has a perplexity of 5.12, of one 5.36, twelve explicit blocks
    5.18. An evaluation costs every block's. Not with many blocks and no penalty: the more blocks, the less the input's
    share in the first one holds the map together.

    Args:
        blocks: of one width, with `norm="post"`; the first one alone sees the input.

    Raises:
        ValueError: no blocks, or of several widths.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> blocks = [ti.nn.TransformerCell(16, heads=2, length=24) for _ in range(2)]
        >>> inject, cell = ti.nn.TransformerInjection(5, 16), ti.nn.TransformerStack(blocks)
        >>> layer = ti.nn.DEQ(cell, init=cell.start)
        >>> x = inject(torch.randn(3, 12, 5))
        >>> z = layer(x)
        >>> z.shape, layer.report.converged
        (torch.Size([3, 12, 16]), True)

        The next segment of the same sequences sees this one, block by block:

        >>> memories = cell.recall(cell.inputs(z.detach(), x.detach()), x.detach())
        >>> layer(inject(torch.randn(3, 12, 5)), *memories).shape
        torch.Size([3, 12, 16])
    """

    def __init__(self, blocks: Sequence[TransformerCell]):
        """Takes the blocks over."""
        super().__init__()
        widths = sorted({block.width for block in blocks})
        if len(widths) != 1:
            raise ValueError(
                f"TransformerStack: got blocks of widths {widths}, expected one width, and a block at least"
            )
        self.width, self.blocks = widths[0], nn.ModuleList(blocks)

    def forward(self, z: Tensor, x: Tensor, *memories: Tensor) -> Tensor:
        """The next state.

        Args:
            z: state, `(B, T, width)`.
            x: what `TransformerInjection` makes of the input, `(B, T, 4 * width)`.
            *memories: what `recall` makes of the segment before, one for every block; none for none.
        """
        return self._through(z, x, memories)[-1]

    def inputs(self, z: Tensor, x: Tensor, *memories: Tensor) -> tuple[Tensor, ...]:
        """The states that the blocks see at `z`, which is the first of them; see `forward`."""
        return self._through(z, x, memories, len(self.blocks) - 1)

    def recall(self, inputs: Sequence[Tensor], x: Tensor) -> tuple[Tensor, ...]:
        """The keys and values by which every block remembers a segment; see `TransformerCell.recall`.

        Args:
            inputs: the states that the blocks saw, `(B, M, width)` each.
            x: their injection, `(B, M, 4 * width)`.
        """
        seen = zip(self.blocks, inputs, strict=True)
        return tuple(block.recall(z, x if i == 0 else None) for i, (block, z) in enumerate(seen))  # type: ignore[operator]

    def start(self, x: Tensor, *memories: Tensor) -> Tensor:
        """Where a solve begins: zeros, `(B, T, width)`. For `DEQ(cell, init=cell.start)`."""
        return x.new_zeros(*x.shape[:-1], self.width)

    def _through(
        self, z: Tensor, x: Tensor, memories: Sequence[Tensor], count: int | None = None
    ) -> tuple[Tensor, ...]:
        """The states before the blocks and after the last, or the last of `count`."""
        states = [z]
        for i, block in enumerate(self.blocks[:count]):
            states.append(block(states[-1], x if i == 0 else None, memories[i] if memories else None))
        return tuple(states)

"""A network that fills boards: a satisfiability layer whose contradictions are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require, require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import MaxSAT


class BoardRelaxation(nn.Module):
    """Fills a board's blanks by one `nn.MaxSAT` over a variable for every number of every cell.

    A given cell gives all of its variables. Nothing is told of rows, columns or boxes, nor that a cell has one number
    but by asking for the likeliest. Variables are placed in a random order, so that blocks of the descent are unlike
    what contradicts itself.

    Source: P.-W. Wang, P. L. Donti, B. Wilder, J. Z. Kolter, arXiv 1905.12149, section 4.2, from which the layer
    differs as it says.

    Args:
        size: cells in a row, and numbers.
        auxiliary: see `nn.MaxSAT`.
        rank: see `nn.MaxSAT`.
        anchor: see `nn.MaxSAT`.
        blocks: see `nn.MaxSAT`.
        rtol: see `nn.MaxSAT`.
        max_steps: see `nn.MaxSAT`.
        backward_rtol: see `nn.MaxSAT`.
        sharpness: logits are the cosines times this.
        on_failure: of the layer. "ignore", as the module counts what fails and says so once an epoch.
    """

    def __init__(
        self,
        size: int = 9,
        auxiliary: int = 0,
        rank: int = 4,
        anchor: float = 5.0,
        blocks: int = 10,
        rtol: float = 1e-2,
        max_steps: int = 50,
        backward_rtol: float = 3e-2,
        sharpness: float = 80.0,
        on_failure: OnFailure = "ignore",
    ):
        """Builds the layer."""
        super().__init__()
        self.size, self.sharpness = size, sharpness
        require_count(self, "size")
        require(self, "sharpness", sharpness > 0, "a number > 0")
        self.layer = MaxSAT(
            size**3,
            auxiliary,
            rank=rank,
            anchor=anchor,
            blocks=blocks,
            rtol=rtol,
            max_steps=max_steps,
            backward_rtol=backward_rtol,
            on_failure=on_failure,
        )
        order = torch.randperm(size**3)
        self.order: Tensor
        self.place: Tensor
        self.register_buffer("order", order)
        self.register_buffer("place", order.argsort())

    def cosines(self, board: Tensor) -> Tensor:
        """1 for true, -1 for false: of every number in every cell, `(B, cells, size)`.

        Args:
            board: whole numbers `(B, cells)`, 0 for a blank.

        Raises:
            ValueError: the boards have another size, or numbers that there are not.
        """
        self._check(board)
        hot = nn.functional.one_hot(board, self.size + 1)[..., 1:].flatten(1)
        given = (board > 0).repeat_interleave(self.size, 1)
        x = hot[:, self.order].to(self.layer.directions.dtype)
        return self.layer.cosine(x, given[:, self.order])[:, self.place].unflatten(1, (-1, self.size))

    def forward(self, board: Tensor) -> Tensor:
        """Logits `(B, cells, size)`."""
        return self.sharpness * self.cosines(board)

    @torch.no_grad()
    def fill(self, board: Tensor, at_once: int = 2) -> Tensor:
        """Full boards `(B, cells)`: solves, writes the surest numbers down, and solves again until none is blank.

        The rounding of a relaxation, and no search: what has been written is never taken back.

        Args:
            board: whole numbers `(B, cells)`, 0 for a blank.
            at_once: numbers written down a solve.

        Raises:
            ValueError: see `cosines`; or `at_once` is no number from 1.
        """
        self._check(board)
        if at_once < 1:
            raise ValueError(f"fill: got at_once={at_once}, expected an integer >= 1")
        board = board.clone()
        while bool((board == 0).any()):
            best = self.cosines(board).topk(2, 2)
            lead = (best.values[..., 0] - best.values[..., 1]).masked_fill(board > 0, -torch.inf)
            cells = lead.topk(min(at_once, board.shape[1]), 1).indices
            written = board.gather(1, cells)
            number = best.indices[..., 0].gather(1, cells) + 1
            board.scatter_(1, cells, torch.where(written > 0, written, number))
        return board

    def _check(self, board: Tensor) -> None:
        if board.dtype != torch.int64 or board.dim() != 2 or board.shape[1] != self.size**2:
            raise ValueError(
                f"BoardRelaxation: got boards {tuple(board.shape)} of {board.dtype}, expected (B, {self.size**2}) of "
                "torch.int64; try board.flatten(1).long()"
            )
        wrong = (board < 0) | (board > self.size)
        if bool(wrong.any()):
            sample, cell = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"BoardRelaxation: board {sample} has {int(board[sample, cell])} in cell {cell}, expected 1 to "
                f"{self.size}, or 0 for a blank"
            )

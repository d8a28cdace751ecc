"""Networks that fill boards: by a program with learned constraints, and an explicit rival."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchimplicit.core.options import is_count, require, require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import QP


class BoardProgram(nn.Module):
    r"""Fills a board's blanks by one quadratic program, with rules that it learns.

    $\min_z \tfrac{\epsilon}{2} |z|^2 - x^\top z$ subject to $A z = b$, $z \ge 0$, where $x$ and $z$ have a place for
    every number in every cell, and $x$ is 1 where that number is given. Only $A$ and $b$ are learned.

    Source: B. Amos, J. Z. Kolter, arXiv:1703.00443, section 4.4.

    Args:
        size: cells in a row, and numbers.
        rules: learned equations. Those that all boards of 4 x 4 meet have rank 40; with more some boards cannot.
        ridge: $\epsilon$.
        on_failure: of the layer. "ignore", as the module counts what fails and says so once an epoch.
    """

    def __init__(self, size: int = 4, rules: int = 40, ridge: float = 0.1, on_failure: OnFailure = "ignore"):
        """Draws the rules."""
        super().__init__()
        self.size, self.rules = size, rules
        require_count(self, "size")
        require(self, "rules", is_count(rules) and rules < size**3, f"an integer in [1, {size**3})")
        self.program = QP(
            size**3, equalities=rules, lower=0.0, ridge=ridge, learn_curvature=False, on_failure=on_failure
        )

    def forward(self, board: Tensor) -> Tensor:
        """`(B, cells)`, 0 for a blank, to a score for every number of every cell, `(B, cells, size)`."""
        return self.program(-_given(board, self.size, self.program.inside.dtype)).unflatten(1, (-1, self.size))


class BoardPerceptron(nn.Module):
    """The rival of `BoardProgram`: a dense network of two hidden layers.

    Args:
        size: cells in a row, and numbers.
        width: of the hidden layers.
    """

    def __init__(self, size: int = 4, width: int = 512):
        """Draws the weights."""
        super().__init__()
        self.size = size
        require_count(self, "size")
        inner, outer = nn.Linear(width, width), nn.Linear(width, size**3)
        self.layers = nn.Sequential(nn.Linear(size**3, width), nn.ReLU(), inner, nn.ReLU(), outer)

    def forward(self, board: Tensor) -> Tensor:
        """`(B, cells)`, 0 for a blank, to a score for every number of every cell, `(B, cells, size)`."""
        return self.layers(_given(board, self.size, next(self.parameters()).dtype)).unflatten(1, (-1, self.size))


def _given(board: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """1 for every number of every cell that is given, else 0: `(B, cells * size)`."""
    return nn.functional.one_hot(board, size + 1)[..., 1:].flatten(1).to(dtype)

"""A residual network of dense layers that sees a time and a class."""

from __future__ import annotations

from torch import Tensor, nn

from torchimplicit.core.options import require_count
from torchimplicit.train.networks.denoisers.conditions import ConditionEmbedding


class ConditionalMLP(nn.Module):
    """Vectors to vectors of the same width, given a time and a class: dense blocks, added to what came in.

    Its last layer starts at zero, and so its output.

    Args:
        width: of a vector.
        hidden: of the layers between.
        blocks: how many, of two layers each.
        classes: see `ConditionEmbedding`.
    """

    def __init__(self, width: int = 64, hidden: int = 160, blocks: int = 2, classes: int | None = None):
        """Draws the weights."""
        super().__init__()
        self.width, self.hidden, self.blocks, self.classes = width, hidden, blocks, classes
        require_count(self, "width", "hidden", "blocks")
        self.condition = ConditionEmbedding(hidden, classes)
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.body = nn.ModuleList(_DenseBlock(hidden) for _ in range(blocks))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None) -> Tensor:
        """`(B, width)` from the same, at times `(B, 1, ...)`, and classes `(B,)`, `classes` for none."""
        condition = self.condition(t, label)
        h = self.first(x)
        for block in self.body:
            h = block(h + condition)
        return self.last(nn.functional.silu(h))


class _DenseBlock(nn.Sequential):
    def __init__(self, hidden: int):
        layers = (nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        super().__init__(nn.LayerNorm(hidden), *layers)

    def forward(self, h: Tensor) -> Tensor:
        return h + super().forward(h)

"""Standard normals of images, by an image's seed and the number of the draw alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.sde import normals
from torchimplicit.sde.draws import Draws
from torchimplicit.sde.seeds import Seed, Seeded


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample(Seeded):
    """The seeds of samples; see `Seeded`."""


class Normals(Draws):
    """The noise of a batch of samples, which does not depend on the batch: draw 0 is the start, others are a sampler's.

    Args:
        seed: see `Seeded`.
        count: how many samples.
        shape: of one.
        like: a tensor of the dtype and device that they shall have.
    """

    def __init__(self, seed: Seed, count: int, shape: Sequence[int], like: Tensor):
        super().__init__(Sample(seed=seed), like.new_empty(()).expand(count, *shape))

    def draw(self, number: int) -> Tensor:
        """Standard normals `(B, *shape)`; of other numbers independent ones."""
        width = len(self.channels)
        words = self.channels[: (width + 1) // 2] + normals.places(
            normals.DRAW, torch.full_like(self.channels[:1], number)
        )
        rows = torch.cat(normals.pair(self.seeds[:, None], words, self.dtype), 1)
        return self.shaped(rows[:, :width])

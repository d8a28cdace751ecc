"""Who draws: the samples and the channels of one solve."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.tree import Layout
from torchimplicit.sde import normals
from torchimplicit.sde.seeds import Seeded, seeds_of_samples


class Draws:
    """Base of the noise of one solve.

    Unknowns stand as in a contiguous copy of the tensors, so that their memory format changes no path. Half precision
    gets its noise in float32, and a complex leaf one for its real and one for its imaginary parts.

    Args:
        source: asks for the same noise again, at another solve.
        like: tensors `(B, ...)`, nested at will, of the shapes, dtypes and device that increments shall have.

    Attributes:
        source: with a seed.
        seeds: one a sample, `(B,)`; those of some samples repeat these samples alone.
        channels: words of the channels, `(m,)`.
        dtype: of the increments.
        device: of the increments.
    """

    def __init__(self, source: Seeded, like: Any):
        self.source = source.known()
        self.layout = Layout(_contiguous(like))
        self.dtype, self.device = self.layout.dtype, self.layout.device
        self.seeds = seeds_of_samples(type(source).__name__, self.seed, self.layout.batch, self.device)
        self.channels = normals.words_of_channels(self.layout.width, self.device)

    @property
    def seed(self) -> int | Tensor:
        """What repeats all of it."""
        assert self.source.seed is not None
        return self.source.seed

    def shaped(self, rows: Tensor) -> Any:
        """A matrix `(B, m)` of increments in the shapes and dtypes of the tensors that the noise was made for."""
        return self.layout.unflatten(rows)

    def take(self, samples: Tensor) -> Self:
        """The noise of some samples, `(M,)` indices: what they have of it among all."""
        some = copy.copy(self)
        some.layout = self.layout.of_batch(len(samples))
        some.seeds = self.seeds[samples]
        return some


def _contiguous(like: Any) -> Any:
    """Tensors of the same shapes that take no memory, and have the plain order of dimensions."""
    if isinstance(like, Tensor) and like.dim() < 4:  # which has no other order
        return like
    return pytree.tree_map(
        lambda leaf: leaf.new_empty(()).expand(leaf.shape) if isinstance(leaf, Tensor) else leaf, like
    )

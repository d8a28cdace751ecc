"""Affine maps of vectors as lists of their entries: batched, differentiable at every order, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Affine:
    """`c + M v` for a sparse matrix `M`, the result in some shape.

    Args:
        constant: `c`, flat, float64.
        shape: of the result, without the batch.
        places: rows of the matrix's entries, int64.
        sources: columns of the matrix's entries, int64.
        weights: the entries, float64.
    """

    def __init__(self, constant: Tensor, shape: Sequence[int], places: Tensor, sources: Tensor, weights: Tensor):
        """Keeps the entries that are not zero."""
        kept = weights != 0
        self.shape = tuple(shape)
        self.constant, self.places, self.sources, self.weights = constant, places[kept], sources[kept], weights[kept]

    @property
    def depends(self) -> bool:
        """Whether the result depends on the vector at all."""
        return len(self.weights) > 0

    def __call__(self, v: Tensor) -> Tensor:
        """The result `(B, *shape)` for `(B, size)`; `shape` alone where it depends on nothing."""
        constant, places, sources, weights = (
            part.to(v.device) for part in (self.constant, self.places, self.sources, self.weights)
        )
        if not self.depends:
            return constant.reshape(self.shape)
        result = constant.expand(len(v), -1).index_add(1, places, v[:, sources] * weights)
        return result.reshape(len(v), *self.shape)

    def after(self, inner: Affine) -> Affine:
        """This map of the other's result."""
        order = torch.argsort(inner.places, stable=True)
        counts = torch.bincount(inner.places, minlength=inner.constant.numel())
        starts = counts.cumsum(0) - counts
        times = counts[self.sources]
        outer = torch.repeat_interleave(torch.arange(len(times), device="cpu"), times)
        within = torch.arange(len(outer), device="cpu") - (times.cumsum(0) - times)[outer]
        chosen = order[starts[self.sources][outer] + within]
        constant = self.constant.index_add(0, self.places, self.weights * inner.constant[self.sources])
        weights = self.weights[outer] * inner.weights[chosen]
        return Affine(constant, self.shape, self.places[outer], inner.sources[chosen], weights)


def selection(index: Tensor, scale: Tensor | float = 1.0) -> Affine:
    """The map that takes the entry `index` of a vector, times a scale, to every place; zero where it is negative."""
    flat = index.flatten()
    weights = torch.where(flat >= 0, torch.as_tensor(scale, dtype=torch.float64, device="cpu"), 0.0).expand(flat.shape)
    constant = torch.zeros(flat.numel(), dtype=torch.float64, device="cpu")
    return Affine(constant, index.shape, torch.arange(flat.numel(), device="cpu"), flat.clamp(min=0), weights)

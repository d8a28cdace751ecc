"""Nested tensors as one matrix `(batch, n)` and back, and the norm that every stopping test uses."""

from __future__ import annotations

import copy
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms

promoted = lru_cache(torch.promote_types)  # of two dtypes, asked for in every solve


def norm(rows: Tensor) -> Tensor:
    """Euclidean norm of every row of a matrix `(B, n)`; divide by `sqrt(n)` for the RMS. Returns `(B,)`."""
    return torch.linalg.vector_norm(rows, dim=1)


def largest(rows: Tensor) -> Tensor:
    """The largest magnitude in every row of a matrix `(B, n)`, `(B, 1)`; torch's maximum norm takes far longer."""
    return rows.abs().amax(1, keepdim=True)


def scaled_norm(rows: Tensor) -> Tensor:
    """`norm` of rows whose squares may be zero or infinite in their dtype, at the price of a few passes more."""
    top = largest(rows)
    unit = torch.where((top > 0) & top.isfinite(), top, 1)
    return norm(rows / unit) * unit.squeeze(1)


class Layout:
    """How a nested state maps to a matrix `(batch, n)`.

    Half precision is carried in float32 (the state that the user's function sees keeps its dtype), and a complex leaf
    counts as its real and imaginary parts, so solvers see one real floating matrix whatever the state is. Unknowns
    stand in the order that they have in memory, so that images with their channels last stay so without a copy.

    Args:
        state: a tensor, or a nest of tuples, lists and dicts of tensors, of a floating or complex dtype.
        batch_dims: 1 when dimension 0 of every leaf is the batch; 0 for one coupled problem.

    Raises:
        TypeError: a leaf is not a floating or complex tensor.
        ValueError: no leaf, a leaf without unknowns, or leaves whose batch sizes differ.
    """

    def __init__(self, state: Any, batch_dims: int = 1):
        """Records shapes and dtypes; keeps no tensor."""
        if batch_dims not in (0, 1):
            raise ValueError(
                f"batch_dims: got {batch_dims!r}, expected 1 (dimension 0 is the batch) or 0 (one problem)"
            )
        leaves, self.spec = pytree.tree_flatten(state)
        _check_leaves(leaves, batch_dims)
        self.shapes = [leaf.shape for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.device = leaves[0].device
        self.batch = leaves[0].shape[0] if batch_dims else 1
        self.dtype = torch.float32
        for dtype in self.dtypes:
            self.dtype = promoted(self.dtype, dtype.to_real() if dtype.is_complex else dtype)
        parts = [2 if dtype.is_complex else 1 for dtype in self.dtypes]
        self.sizes = [part * prod(shape[batch_dims:]) for part, shape in zip(parts, self.shapes, strict=True)]
        self.channels_last = [batch_dims == 1 and _has_channels_last(leaf) for leaf in leaves]
        self.plain = len(leaves) == 1 and self.dtypes[0] == self.dtype and self.spec.is_leaf()
        self.flat = self.plain and batch_dims == 1 and leaves[0].dim() == 2  # already the matrix that solvers want

    @property
    def width(self) -> int:
        """Unknowns per sample."""
        return sum(self.sizes)

    def flatten(self, state: Any, subject: str = "the function returned") -> Tensor:
        """The state as a matrix `(B, n)`; a view where that is possible.

        Args:
            state: of the recorded structure and shapes.
            subject: see `check`.

        Raises:
            TypeError: it holds something else than tensors.
            ValueError: it has other shapes: they would broadcast, and another equation be solved in silence.
        """
        if self.plain:
            if not isinstance(state, Tensor) or state.shape != self.shapes[0]:
                self.check(state, cast=True, subject=subject)
            state = state if state.dtype is self.dtype else state.to(self.dtype)
            return state if self.flat else self._as_rows(0, state)
        rows, leaves = [], pytree.tree_leaves(state)
        if [leaf.shape if isinstance(leaf, Tensor) else None for leaf in leaves] != self.shapes:
            self.check(state, cast=True, subject=subject)
        for i, leaf in enumerate(leaves):
            real = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
            rows.append(self._as_rows(i, real.to(self.dtype)))
        return torch.cat(rows, dim=1)

    def unflatten(self, rows: Tensor) -> Any:
        """A matrix `(B, n)` as a state of the recorded structure, shapes and dtypes."""
        if self.plain:
            return rows if self.flat else self._as_leaf(0, rows)
        leaves = []
        for i, (piece, dtype) in enumerate(zip(rows.split(self.sizes, dim=1), self.dtypes, strict=True)):
            if dtype.is_complex:
                piece = torch.view_as_complex(piece.reshape(len(piece), self.sizes[i] // 2, 2).contiguous())
            elif dtype.itemsize < self.dtype.itemsize:  # what half precision has no number for is not infinite yet
                piece = piece.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
            leaves.append(self._as_leaf(i, piece).to(dtype))
        return pytree.tree_unflatten(leaves, self.spec)

    def _as_rows(self, i: int, leaf: Tensor) -> Tensor:
        leaf = leaf.movedim(1, -1) if self.channels_last[i] else leaf
        return leaf.reshape(self.batch, self.sizes[i])

    def _as_leaf(self, i: int, rows: Tensor) -> Tensor:
        shape = self.shapes[i]
        return (
            rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
            if self.channels_last[i]
            else rows.reshape(shape)
        )

    def describe(self) -> str:
        """Shapes and dtypes of the leaves, for messages."""
        return ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in zip(self.shapes, self.dtypes, strict=True))

    @property
    def eps(self) -> float:
        """The coarsest rounding among the leaves' dtypes."""
        return max(torch.finfo(dtype).eps for dtype in self.dtypes)

    def of_batch(self, batch: int) -> Layout:
        """The same layout for another number of samples."""
        other = copy.copy(self)
        other.batch, other.shapes = batch, [torch.Size((batch, *shape[1:])) for shape in self.shapes]
        return other

    def check(self, value: Any, cast: bool = False, subject: str = "the function returned") -> None:
        """Refuses a value of another structure, shape or dtype than the state's; `cast` lets the dtype pass.

        Args:
            value: what to look at.
            cast: let a floating dtype pass, for autocast.
            subject: how messages begin.

        Raises:
            ValueError: structure, shape or device differ.
            TypeError: a dtype differs.
        """
        leaves, spec = pytree.tree_flatten(value)
        if spec != self.spec:
            raise ValueError(f"{subject} the structure {spec}, expected that of the state, {self.spec}")
        for leaf, shape, dtype in zip(leaves, self.shapes, self.dtypes, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{subject} a {type(leaf).__name__}, expected a tensor like the state's")
            if leaf.shape != shape:
                raise ValueError(
                    f"{subject} shape {tuple(leaf.shape)}, expected the state's shape {tuple(shape)}; "
                    "try another z0 (or init=), or project back to the state inside the function"
                )
            if leaf.device != self.device:
                raise ValueError(
                    f"{subject} a tensor on {leaf.device}, expected {self.device}, where the state is; try .to() of "
                    "the function's tensors, or of the state"
                )
            if leaf.dtype != dtype and not (cast and leaf.is_floating_point()):
                raise TypeError(
                    f"{subject} {leaf.dtype}, expected the state's {dtype}; "
                    "try z0 of that dtype, or convert weights and inputs with .to()"
                )


def own(value: Any) -> Any:
    """A nested value that the caller may write into: copies of what a graph may still need."""
    return _own(value) if isinstance(value, Tensor) else pytree.tree_map(_own, value)


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


def _has_channels_last(leaf: Tensor) -> bool:
    """Whether a plain tensor of images or volumes holds the channels of a pixel side by side."""
    if leaf.dim() not in (4, 5) or leaf.is_complex() or transforms.level(leaf) >= 0 or leaf.is_contiguous():
        return False
    return leaf.is_contiguous(memory_format=torch.channels_last if leaf.dim() == 4 else torch.channels_last_3d)


def _check_leaves(leaves: list[Any], batch_dims: int) -> None:
    if not leaves:
        raise ValueError("the state is empty: got no tensor, expected a tensor or a nest of tensors")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"the state holds a {type(leaf).__name__}, expected tensors only; try torch.as_tensor")
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                f"the state is {leaf.dtype}, expected a floating or complex dtype; try z0.float() or z0.double()"
            )
        if leaf.dim() < batch_dims:
            raise ValueError(
                "the state is a scalar, expected dimension 0 to be the batch; try z0[None], or batch_dims=0 for one "
                "coupled problem"
            )
        if 0 in leaf.shape[batch_dims:]:
            raise ValueError(f"the state has shape {tuple(leaf.shape)}, expected at least one unknown")
    if batch_dims and len({leaf.shape[0] for leaf in leaves}) > 1:
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise ValueError(f"the state's leaves have shapes {shapes}, expected one batch size in dimension 0")

"""Batches of reconstruction: what was measured, by which operator, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from torchimplicit.imaging import Operator


class Measurement(NamedTuple):
    """A batch to reconstruct: a network is called `network(y, op)`.

    Attributes:
        y: measurements, `(B, ...)`, real or complex.
        op: what they were measured by, an operator with `A` and `A_adjoint`; `op.take(rows)` is that of some samples.
        target: the true images, `(B, ...)`, or None where nobody knows them.
        motion: where samples are acquisitions of moving objects, two of each one after the other, and the motion is
            known: displacements `(B, 2, H, W)` in voxels along which the other image of the two looks like this one.
    """

    y: Tensor
    op: Any
    target: Tensor | None = None
    motion: Tensor | None = None


class Measured(Dataset):
    """Measurements that are kept as they are, such as those of a test split.

    Args:
        y: measurements, `(N, ...)`.
        op: the operator of all of them; its own tensors of samples are narrowed with the batch.
        target: the true images, `(N, ...)`, or None.
    """

    def __init__(self, y: Tensor, op: Any, target: Tensor | None = None):
        """Keeps them.

        Raises:
            ValueError: as many truths as measurements there are not.
        """
        if target is not None and len(target) != len(y):
            raise ValueError(f"Measured: got {len(target)} targets of {len(y)} measurements, expected one each")
        self.y, self.op, self.target = y, op, target

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Measurement:
        """One sample, without the dimension of a batch in tensors."""
        y, op, target, _ = self.__getitems__([index])
        return Measurement(y[0], op, None if target is None else target[0])

    def __getitems__(self, indices: Sequence[int]) -> Measurement:
        """A whole batch at once."""
        rows = torch.tensor(indices)
        return Measurement(self.y[rows], taken(self.op, rows), None if self.target is None else self.target[rows])


def taken(op: Any, rows: Tensor) -> Any:
    """The operator of some samples; one that is not the library's is the same for all."""
    return op.take(rows) if isinstance(op, Operator) else op


def first(batch: Any, count: int) -> Any:
    """The first samples of a batch: rows of its tensors, the operators of these samples, all else as it is."""
    size = next((len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), 0)
    rows = torch.arange(min(count, size))

    def cut(leaf: Any) -> Any:
        return leaf[:count] if isinstance(leaf, Tensor) else taken(leaf, rows)

    return pytree.tree_map(cut, batch)

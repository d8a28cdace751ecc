"""A path that can be asked for any time, and its events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.tree import Layout
from torchimplicit.path.dense.chain import ChainedPath
from torchimplicit.path.dense.evaluate import MaskedPath, RecordedPath
from torchimplicit.path.field.dynamics import Dynamics


class DensePath:
    """The solution between the first and the last time, as a function of time: `solution.path`.

    Differentiable by the time asked for and by all that the path depends on, as the outputs are: the steps that were
    taken are made again where they are asked for, so that a call costs as many evaluations as its steps, plus those
    back to the last state that was kept (`Checkpointed(checkpoints=...)`; without gradients all are). A sample that
    failed or met its event holds its last state from then on, with a derivative of zero; `reached` says from when.

    Attributes:
        reached: the time that each sample reached, `(B,)`.
    """

    def __init__(
        self, recorded: RecordedPath | ChainedPath | MaskedPath, dynamics: Dynamics, reached: Tensor, end: Tensor
    ):
        """Of a recorded path whose samples reached these times `(B,)`, and hold states `(B, n)` from then on."""
        self.watch: Callable[[Tensor, int], None] | None = None  # told of all that is given away
        self._recorded, self._dynamics, self._until, self._end = recorded, dynamics, reached, end
        self.reached = dynamics.user_time(reached)

    def __call__(self, t: Tensor | float) -> Any:
        """The states at times `t`.

        Args:
            t: a number, times `(M,)` that all samples share, or `(M, B)` for times of every sample's own, in any order.

        Returns:
            Like the initial state for a number; with a dimension of `M` in front otherwise.

        Raises:
            ValueError: a time before the first or after the last, or of another shape.
        """
        at, late = self._place(t)
        return self._nested(torch.where(late.unsqueeze(2), self._end, self._recorded.at(at)), t)

    def derivative(self, t: Tensor | float) -> Any:
        """The derivative of the path by time, in the form of `path(t)`: that of the interpolant, near to `f`."""
        at, late = self._place(t)
        rows = self._recorded.at(at, order=1)[..., self._recorded.y0.shape[1] :]
        rows = torch.where(late.unsqueeze(2), 0.0, rows)
        return self._nested(rows if self._dynamics.sign is None else rows * self._dynamics.sign.unsqueeze(1), t)

    def detach(self) -> DensePath:
        """The same path without a gradient."""
        assert not isinstance(self._recorded, MaskedPath)
        return DensePath(self._recorded.detach(), self._dynamics, self._until, self._end.detach())

    @property
    def recorded(self) -> RecordedPath:
        """The recorded solve."""
        assert isinstance(self._recorded, RecordedPath)
        return self._recorded

    def along(self, chain: ChainedPath, reached: Tensor, end: Tensor) -> DensePath:
        """The path of a solve in stretches of which this is the last; see `DensePath`."""
        return DensePath(chain, self._dynamics, reached, end)

    def ending(self, end: Tensor) -> DensePath:
        """The same path with these states `(B, n)` from its end on."""
        return DensePath(self._recorded, self._dynamics, self._until, end)

    def beside(self, other: DensePath, which: Tensor, end: Tensor) -> DensePath:
        """This path, detached, for some samples `(B,)`, another for the rest; with the states at the ends of both."""
        assert not isinstance(self._recorded, MaskedPath)
        assert not isinstance(other._recorded, MaskedPath)
        return DensePath(MaskedPath(self._recorded, other._recorded, which), self._dynamics, self._until, end)

    def _nested(self, rows: Tensor, t: Tensor | float) -> Any:
        if self.watch is not None:
            self.watch(rows, 1)
        value = stacked(self._dynamics.layout, rows)
        several = isinstance(t, Tensor) and t.dim() > 0
        return value if several else pytree.tree_map(lambda leaf: leaf[0], value)

    def _place(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Times as solvers count them, `(K, B)`, none beyond what was reached; which of them were beyond."""
        ts, batch = self._recorded.ts, self._dynamics.layout.batch
        # A number would be taken for one of single precision.
        t = torch.as_tensor(t, dtype=ts.dtype if isinstance(t, float) else None, device=ts.device)
        if t.dim() > 2 or t.numel() == 0 or (t.dim() == 2 and t.shape[1] not in (1, batch)) or t.is_complex():
            raise ValueError(
                f"path(t): got {t.dtype} times of shape {tuple(t.shape)}, expected a number, (M,) or (M, {batch})"
            )
        at = self._dynamics.user_time(t.to(ts.dtype).reshape(1 if t.dim() == 0 else len(t), -1).expand(-1, batch))
        if not transforms.active():
            self._check_within(at.detach(), ts.detach())
        at = torch.where(at < ts[0], ts[0], at)  # by a rounding
        late = at > self._until
        return torch.where(late, self._until, at), late

    def _check_within(self, at: Tensor, ts: Tensor) -> None:
        slack = 8 * torch.finfo(ts.dtype).eps * ts[[0, -1]].abs().amax(0)
        outside = ~((at >= ts[0] - slack) & (at <= ts[-1] + slack))
        if bool(outside.any()):
            place, sample = torch.nonzero(outside)[0].tolist()
            first, last, got = (
                float(self._dynamics.user_time(each)[sample]) + 0.0 for each in (ts[0], ts[-1], at[place])
            )
            raise ValueError(
                f"path(t): got t = {got:g} for sample {sample}, expected a time within [{min(first, last):g}, "
                f"{max(first, last):g}], where it was solved; try a later ts[-1]"
            )


def stacked(layout: Layout, rows: Tensor) -> Any:
    """Flat states `(K, B, n)` as the state's nest with the times in front."""
    if layout.plain:
        count = len(rows)
        if layout.flat:
            return rows
        if layout.channels_last == [False]:
            return rows.reshape(count, *layout.shapes[0])
        return layout.of_batch(count * layout.batch).unflatten(rows.flatten(0, 1)).unflatten(0, (count, layout.batch))
    if not len(rows):
        nothing = rows.new_zeros(layout.batch, layout.width)
        return pytree.tree_map(lambda leaf: leaf.new_zeros(0, *leaf.shape), layout.unflatten(nothing))
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *(layout.unflatten(row) for row in rows.unbind()))

"""Output times: checked, one row per output, running forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.tree import Layout


def check_times(ts: Any, layout: Layout) -> Tensor:
    """Output times as a matrix `(T, B)`, or `(T, 1)` where all samples share them, as the user counts them.

    Args:
        ts: `(T,)`, or `(T, B)` for times of every sample's own; strictly increasing or strictly decreasing.
        layout: of the state.

    Raises:
        TypeError: not a floating tensor.
        ValueError: fewer than two times, not finite, not monotone, of another batch, or on another device.
    """
    if not isinstance(ts, Tensor) or not ts.is_floating_point():
        got = f"a {ts.dtype} tensor" if isinstance(ts, Tensor) else f"a {type(ts).__name__}"
        raise TypeError(f"ts: got {got}, expected a floating tensor of times; try torch.tensor([0.0, 1.0])")
    if ts.device != layout.device:
        raise ValueError(f"ts: got times on {ts.device}, expected {layout.device}, where y0 is; try ts.to(y0.device)")
    if ts.dim() not in (1, 2) or (ts.dim() == 2 and ts.shape[1] not in (1, layout.batch)):
        raise ValueError(
            f"ts: got shape {tuple(ts.shape)}, expected (T,) for times that all samples share, or (T, {layout.batch}) "
            "for times of every sample's own"
        )
    if len(ts) < 2:
        raise ValueError(f"ts: got {len(ts)} times, expected the start and at least one time more")
    ts = ts.reshape(len(ts), -1).to(torch.promote_types(ts.dtype, layout.dtype))
    if not bool(ts.isfinite().all()):
        raise ValueError("ts: got NaN or infinity, expected finite times; for a limit in time see SteadyState()")
    gaps = ts.detach().diff(dim=0)
    if not bool(((gaps > 0).all(0) | (gaps < 0).all(0)).all()):
        bad = int(torch.nonzero(~((gaps > 0).all(0) | (gaps < 0).all(0)))[0])
        column = ts[:, bad].detach()
        at = int(torch.nonzero(column.diff() * torch.sign(column[-1] - column[0]) <= 0)[0])
        raise ValueError(
            f"ts: got {float(column[at]):g} followed by {float(column[at + 1]):g} at position {at}, expected times "
            "that strictly increase or strictly decrease; try ts.unique()"
        )
    return ts


def runs_backward(ts: Tensor, batch: int) -> Tensor | None:
    """Which samples run backward in time, `(B,)` bool; None where none does."""
    backward = ts[-1].detach() < ts[0].detach()
    return backward.expand(batch) if bool(backward.any()) else None

"""Output times: checked, one row per output, running forward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.tree import Layout


def check_times(ts: Any, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Output times, and which samples run backward in them.

    Args:
        ts: `(T,)`, or `(T, B)` for times of every sample's own; strictly increasing or strictly decreasing.
        layout: of the state.

    Returns:
        The times as a matrix `(T, B)`, or `(T, 1)` where all samples share them, as the user counts them; and who runs
        backward, `(B,)` bool, None where none does.

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
    if not ts.numel():  # of an empty batch
        return ts, None
    known = transforms.unwrapped(ts.detach())
    # One read by the host: what is not finite shows in a sum, what does not run one way in the sum of the signs.
    rises = known.diff(dim=0).sign().sum(0)
    total, low, high = torch.stack((known.sum(), *rises.aminmax())).tolist()
    if not math.isfinite(total):
        _check_finite(known)
    if low != high or abs(low) != len(ts) - 1:
        _check_monotone(known)
    return ts, (known[-1] < known[0]).expand(layout.batch) if low < 0 else None


def _check_finite(ts: Tensor) -> None:
    if not bool(ts.isfinite().all()):
        raise ValueError("ts: got NaN or infinity, expected finite times; for a limit in time see SteadyState()")


def _check_monotone(ts: Tensor) -> None:
    gaps = ts.diff(dim=0)
    monotone = (gaps > 0).all(0) | (gaps < 0).all(0)
    if bool(monotone.all()):  # the samples go both ways, or there are more times than the dtype counts
        return
    column = ts[:, int(torch.nonzero(~monotone)[0])]
    at = int(torch.nonzero(column.diff() * torch.sign(column[-1] - column[0]) <= 0)[0])
    raise ValueError(
        f"ts: got {float(column[at]):g} followed by {float(column[at + 1]):g} at position {at}, expected times "
        "that strictly increase or strictly decrease; try ts.unique()"
    )

"""Output times: checked, padding filled in, one row per output; and the largest step between them."""

from __future__ import annotations

import math
from operator import lt
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number
from torchimplicit.core.tree import Layout, promoted
from torchimplicit.path.solver import AdaptiveSolver, PathSolver


def check_times(ts: Any, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Output times, and which samples run backward in them.

    Args:
        ts: `(T,)`, or `(T, B)` for times of every sample's own; strictly increasing or strictly decreasing up to a last
            time, which may be repeated. NaN behind a sample's last time stands for its repetition.
        layout: of the state.

    Returns:
        The times as a matrix `(T, B)`, or `(T, 1)` where all samples share them, as the user counts them; and who runs
        backward, `(B,)` bool, None where none does.

    Raises:
        TypeError: not a floating tensor.
        ValueError: none, not finite, not monotone, of another batch, or on another device.
    """
    if not isinstance(ts, Tensor) or not ts.is_floating_point():
        got = f"a {ts.dtype} tensor" if isinstance(ts, Tensor) else f"a {type(ts).__name__}"
        raise TypeError(f"ts: got {got}, expected a floating tensor of times; try torch.tensor([0.0, 1.0])")
    if ts.device != layout.device:
        raise ValueError(f"ts: got times on {ts.device}, expected {layout.device}, where y0 is; try ts.to(y0.device)")
    if ts.dim() not in (1, 2) or (ts.dim() == 2 and ts.shape[1] not in (1, layout.batch)):
        raise ValueError(
            f"ts: got shape {tuple(ts.shape)}, expected (T,) for times that all samples share, or (T, {layout.batch}) "
            "for times of every sample's own, the first one that of y0"
        )
    if not len(ts):
        raise ValueError("ts: got no times, expected at least the one of y0")
    shared, ts = ts.dim() == 1, ts.reshape(len(ts), -1).to(promoted(ts.dtype, layout.dtype))
    if not ts.numel():  # of an empty batch
        return ts, None
    known = transforms.unwrapped(ts.detach() if ts.requires_grad else ts)
    if transforms.is_mapped(known):
        raise ValueError(
            "ts: got times under torch.vmap, expected them in the batch; try times (T, B) of every sample's own"
        )
    if known.shape[1] == 1 and _rise(known.tolist()):
        return ts, None
    # One read by the host: what is not finite shows in a sum, what does not run one way in the sum of the signs.
    rises = known.diff(dim=0).sign().sum(0)
    total, low, high = torch.stack((known.sum(), *rises.aminmax())).tolist()
    if not math.isfinite(total) and not bool(known.isfinite().all()):
        return check_times(_filled(ts, known, shared), layout)
    if low != high or abs(low) != len(ts) - 1:
        _check_order(known)
    return ts, (known[-1] < known[0]).expand(layout.batch) if low < 0 else None


def _rise(times: list[list[float]]) -> bool:
    """Whether times, one a row, are finite and increase, which they mostly do."""
    return -math.inf < times[0][0] and times[-1][0] < math.inf and all(map(lt, times, times[1:]))


def _filled(ts: Tensor, known: Tensor, shared: bool) -> Tensor:
    """Times `(T, B)` with each sample's last one in place of the NaN behind it; `known` are their values.

    Raises:
        ValueError: something else is not finite, or `shared` times, everybody's, have padding.
    """
    missing = known.isnan()
    counts = (~missing).sum(0)
    behind = torch.arange(len(ts), device=ts.device).unsqueeze(1) >= counts
    if shared or bool((missing != behind).any() | known.isinf().any() | (counts == 0).any()):
        raise ValueError(
            "ts: got NaN or infinity, expected finite times, or NaN as padding behind the last time of a sample, in "
            "times (T, B) of every sample's own; for a limit in time see SteadyState()"
        )
    return torch.where(missing, ts.gather(0, counts.unsqueeze(0) - 1), ts)


def _check_order(ts: Tensor) -> None:
    """Refuses times `(T, B)` that are not strictly monotone up to the last.

    Raises:
        ValueError: they are not.
    """
    gaps, forward, ended = ts.diff(dim=0), ts[-1] > ts[0], ts[:-1] == ts[-1]
    wrong = torch.where(ended, gaps != 0, torch.where(forward, gaps <= 0, gaps >= 0))
    if not bool(wrong.any()):
        return
    sample = int(torch.nonzero(wrong.any(0))[0])
    at, column = int(torch.nonzero(wrong[:, sample])[0]), ts[:, sample]
    raise ValueError(
        f"ts: got {float(column[at]):g} followed by {float(column[at + 1]):g} at position {at}, expected times that "
        "strictly increase or strictly decrease, and only then repeat the last; try without the repeated ones"
        f"{same_by_rounding(column, at)}"
    )


def same_by_rounding(times: Tensor, at: int) -> str:
    """That times `(T,)` at a place and behind it may be the same by rounding alone, for messages; nothing where not.

    It is so where neighbours of this size lie further apart than a thousandth of a unit: seconds since 1970 in float32.
    """
    t, later = times[at], times[at + 1]
    apart = float(torch.nextafter(t, torch.full_like(t, torch.inf)) - t)
    if t != later or apart < 1e-3:
        return ""
    return f"; {t.dtype} has steps of {apart:g} there: subtract the first time in float64, or keep float64"


def check_dt_max(dt_max: Any, solver: PathSolver, layout: Layout, dtype: torch.dtype) -> Tensor | None:
    """The largest step of every sample, `(B,)` of the times' dtype; None for any.

    Raises:
        TypeError: neither a number nor a tensor of such.
        ValueError: not positive, of another batch, smaller than the smallest step, or for steps that are given.
    """
    if dt_max is None:
        return None
    if not isinstance(solver, AdaptiveSolver) or not solver.adapts:
        name = type(solver).__name__
        given = "control=Fixed(...)" if isinstance(solver, AdaptiveSolver) else "dt=..."
        raise ValueError(
            f"dt_max: got {dt_max!r} with {name}, expected an adaptive solver, for the steps of {name} are given; try "
            f"{name}({given}) of that size"
        )
    if not (is_number(dt_max) or isinstance(dt_max, Tensor)):
        raise TypeError(f"dt_max: got a {type(dt_max).__name__}, expected a number, or a tensor of one for each sample")
    largest = transforms.unwrapped(torch.as_tensor(dt_max, dtype=dtype, device=layout.device).detach())
    if transforms.level(largest) >= 0 or largest.shape not in ((), (1,), (layout.batch,)):
        raise ValueError(
            f"dt_max: got a tensor of shape {tuple(largest.shape)}, expected a number, or ({layout.batch},), the same "
            "whatever torch.vmap maps; try dt_max.min()"
        )
    if not bool((largest > solver.dt_min).all()):
        raise ValueError(
            f"dt_max: got {dt_max!r}, expected steps above dt_min={solver.dt_min!r} of the solver; try None for any"
        )
    return largest.expand(layout.batch)

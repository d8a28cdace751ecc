"""Series that are none: refused, by their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from torchimplicit.path.times import same_by_rounding


def words(value: Any) -> str:
    """What something is, for messages."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def refuse(number: int, got: str, expected: str, hint: str) -> NoReturn:
    """Refuses a series.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"Series: series {number} has {got}, expected {expected}; try {hint}")


def check_form(times: Any, values: Any, mask: Any) -> None:
    """Refuses what is no padded batch of series. One read by the host where all is well.

    Raises:
        TypeError: not tensors of the right kinds.
        ValueError: shapes that do not go together, and values that cannot be.
    """
    kinds = all(isinstance(part, Tensor) for part in (times, values, mask))
    if not kinds or not (times.is_floating_point() and values.is_floating_point() and mask.dtype == torch.bool):
        got = ", ".join(f"{name} {words(part)}" for name, part in zip(NAMES, (times, values, mask), strict=True))
        raise TypeError(f"Series: got {got}, expected floating times (B, T) and values (B, T, C), and a bool mask")
    if times.dim() != 2 or values.shape[:2] != times.shape or values.dim() != 3 or mask.shape != values.shape:
        got = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(NAMES, (times, values, mask), strict=True))
        raise ValueError(
            f"Series: got {got}, expected times (B, T), and values and mask (B, T, C); try Series.of([(times, values), "
            "...]) for series of different lengths"
        )
    if not times.device == values.device == mask.device:
        raise ValueError(f"Series: got times on {times.device}, values on {values.device}, mask on {mask.device}")
    _check_content(times.detach(), values.detach(), mask)


NAMES = ("times", "values", "mask")


def _check_content(times: Tensor, values: Tensor, mask: Tensor) -> None:
    """Refuses times that do not increase and observations that are none.

    Raises:
        ValueError: there are such; the first is named.
    """
    padding = times.isnan()
    unsorted = torch.zeros_like(padding)
    unsorted[:, 1:] = ~padding[:, 1:] & ~(times[:, 1:] > times[:, :-1])  # also where the one before is NaN
    infinite, beyond = times.isinf(), padding.unsqueeze(2) & mask
    unreal = mask & ~values.isfinite()
    if not bool(torch.stack([fault.any() for fault in (infinite, unsorted, beyond, unreal)]).any()):
        return
    if infinite.any():
        row, at = _first(infinite)
        refuse(row, f"time {float(times[row, at])} at position {at}", "finite times, NaN behind the last", "Series.of")
    if unsorted.any():
        row, at = _first(unsorted)
        got = f"time {float(times[row, at - 1]):g} followed by {float(times[row, at]):g} at position {at}"
        hint = f"to sort them and to join what repeats{same_by_rounding(times[row], at - 1)}"
        refuse(row, got, "times that strictly increase, NaN only behind them", hint)
    if beyond.any():
        row, at, channel = _first(beyond)
        refuse(row, f"an observation at padding, position {at}, channel {channel}", "the mask False there", "Series.of")
    row, at, channel = _first(unreal)
    refuse(
        row, f"the observation {float(values[row, at, channel])} at position {at}, channel {channel}",
        "finite ones", "mask=False for what is missing",
    )  # fmt: skip


def check_one(number: int, series: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Times, values and mask of one series, whose values are NaN where nothing was observed, or are masked.

    Raises:
        TypeError: not tensors of the right kinds.
        ValueError: of the wrong shapes, without observations, or with NaN as a time.
    """
    if not isinstance(series, Sequence) or len(series) not in (2, 3):
        raise TypeError(
            f"Series.of: series {number} is {words(series)}, expected a pair (times, values), or a mask, too"
        )
    times, values = series[0], series[1]
    if not all(isinstance(part, Tensor) and part.is_floating_point() for part in (times, values)):
        got = f"times {words(times)} and values {words(values)}"
        raise TypeError(f"Series.of: series {number} has {got}, expected floating tensors; try torch.as_tensor")
    if times.dim() != 1 or values.dim() != 2 or len(values) != len(times):
        got = f"times {tuple(times.shape)} and values {tuple(values.shape)}"
        refuse(number, got, "(T,) and (T, C)", "values.unsqueeze(1) for one variable")
    mask = series[2] if len(series) == 3 else ~values.isnan()
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != values.shape:
        refuse(
            number, f"a mask of {words(mask)}", f"torch.bool {tuple(values.shape)}, as its values", "~values.isnan()"
        )
    if times.isnan().any():
        refuse(number, f"time NaN at position {int(times.isnan().nonzero()[0])}", "finite times", "to leave it out")
    if not mask.any():
        refuse(number, "no observations", "at least one", "to leave it out")
    return times, values, mask


def _first(where: Tensor) -> list[int]:
    return where.nonzero()[0].tolist()

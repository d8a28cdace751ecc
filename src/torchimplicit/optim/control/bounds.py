"""What the public functions of control refuse, and the shapes that they bring their arguments to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Bound = Tensor | float | None


def check_start(x0: Any) -> None:
    """Refuses first states other than a floating matrix.

    Raises:
        TypeError: no floating tensor.
        ValueError: not `(B, nx)`, or empty.
    """
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"x0: got {got}, expected a floating tensor of first states (B, nx)")
    if x0.dim() != 2 or 0 in x0.shape[1:]:
        hint = "; try x0.unsqueeze(0)" if x0.dim() == 1 else ""
        raise ValueError(f"x0: got shape {tuple(x0.shape)}, expected first states (B, nx), one or more{hint}")


def expanded(name: str, given: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor as one of a shape that it broadcasts to.

    Raises:
        TypeError: no tensor, or of another dtype than `like`.
        ValueError: it does not broadcast.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: got a {type(given).__name__}, expected a tensor that broadcasts to {shape}")
    if given.dtype != like.dtype:
        raise TypeError(f"{name}: got {given.dtype}, expected {like.dtype}, as x0; try .to(x0.dtype)")
    wanted, got = list(shape), list(given.shape)
    if len(got) > len(wanted) or any(a not in (1, b) for a, b in zip(got[::-1], wanted[::-1], strict=False)):
        batched = len(got) == len(wanted) - 1 and got[0] == wanted[0]
        hint = "; for a batch that does not vary in time try .unsqueeze(1)" if batched else ""
        raise ValueError(
            f"{name}: got shape {tuple(got)}, expected one that broadcasts to {shape}, (batch, time, ...){hint}"
        )
    return given.expand(shape)


def as_bound(name: str, given: Bound, default: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A bound as a tensor of a shape: a number, a tensor that broadcasts, or None for `default`, no bound."""
    if given is None or isinstance(given, float | int):
        return torch.full(shape, default if given is None else float(given), dtype=like.dtype, device=like.device)
    return expanded(name, given, shape, like)


def check_order(low_name: str, high_name: str, low: Tensor, high: Tensor) -> None:
    """Refuses a lower bound above the upper one.

    Raises:
        ValueError: names the first sample, time and entry.
    """
    wrong = torch.nonzero(low > high)
    if len(wrong):
        sample, time, entry = wrong[0].tolist()
        got = f"{float(low[sample, time, entry]):.4g} > {float(high[sample, time, entry]):.4g}"
        raise ValueError(
            f"{low_name}, {high_name}: got {got} for sample {sample} at time {time}, entry {entry}; expected "
            f"{low_name} <= {high_name}"
        )

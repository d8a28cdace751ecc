"""Refusing what is no image, no map, no mask, before anything is computed of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms


def is_real_or_complex(value: Any) -> bool:
    """Whether something is a tensor of a floating or complex dtype."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def alike(tensor: Tensor, x: Tensor) -> Tensor:
    """What an operator is made of, real or complex as it is, in the precision of images and on their device."""
    dtype = x.real.dtype
    return tensor.to(x.device, dtype.to_complex() if tensor.is_complex() else dtype)


def kind(value: Any) -> str:
    """What something is, for messages."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_images(owner: str, x: Any, *shape: int | str, name: str = "images") -> None:
    """Refuses what is no batch of images.

    Args:
        owner: who asks.
        x: what it got.
        *shape: expected of a sample, numbers or letters for any; "..." in front for any dimensions.
        name: of what it got.

    Raises:
        TypeError: no tensor of a floating or complex dtype.
        ValueError: another shape.
    """
    if not is_real_or_complex(x):
        raise TypeError(f"{owner}: got {name} that are {kind(x)}, expected a floating or complex one; try x.float()")
    got, some = list(x.shape[1:]), shape[:1] == ("...",)
    wanted = shape[1:] if some else shape
    got = got[len(got) - len(wanted) :] if some and len(got) >= len(wanted) else got
    if (
        not x.dim()
        or len(got) != len(wanted)
        or any(isinstance(b, int) and a != b for a, b in zip(got, wanted, strict=True))
    ):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{owner}: got {name} {tuple(x.shape)}, expected (B, {expected})")


def check_mask(owner: str, mask: Any) -> None:
    """Refuses what is no mask, and one that shows nothing of some sample.

    Raises:
        TypeError: no tensor of bool.
        ValueError: it shows nothing.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{owner}(mask=...): got {kind(mask)}, expected a tensor of torch.bool; try mask > 0")
    if not can_look(mask):
        return
    seen = mask.flatten(1).any(1) if mask.dim() > 2 else mask.any()
    if not bool(seen.all()):
        raise ValueError(f"{owner}(mask=...): got a mask that shows nothing, expected some entries to be seen")


def check_finite(owner: str, name: str, tensor: Tensor) -> None:
    """Refuses NaN and infinity, and nothing but zeros; of four dimensions, with the batch first, it may be empty.

    Raises:
        ValueError: says how many entries.
    """
    if not can_look(tensor):
        return
    bad = int((~tensor.detach().isfinite()).sum())
    if bad:
        raise ValueError(
            f"{owner}({name}=...): got {bad} entries that are NaN or infinite, expected finite ones; "
            f"try {name}.nan_to_num()"
        )
    if not bool(tensor.detach().any()) and not (tensor.dim() == 4 and not len(tensor)):
        raise ValueError(f"{owner}({name}=...): got zeros alone, which measure nothing; expected others")


def can_look(tensor: Tensor) -> bool:
    """Whether values may be looked at: not in a function transform, nor on the meta device."""
    return not transforms.active() and not tensor.is_meta

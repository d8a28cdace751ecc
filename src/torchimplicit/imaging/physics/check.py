"""Refusing what is no image, no map, no mask, before anything is computed of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number


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


def check_batch(owner: str, x: Tensor, count: int, of: str) -> None:
    """Refuses a batch of another size than that of tensors of the samples' own; one sample may go with all of them.

    Args:
        owner: who asks.
        x: images or measurements, `(B, ...)`.
        count: of the tensors; 1 is one for all samples.
        of: what they are, in words.

    Raises:
        ValueError: says both sizes.
    """
    if 1 not in (count, len(x)) and count != len(x):
        raise ValueError(f"{owner}: got a batch of {len(x)}, expected {count}, as many as {of} of the samples' own")


def check_positive(owner: str, name: str, value: Any, like: Tensor) -> Tensor:
    """A number > 0, or one per sample, as a tensor `(1, 1, ...)` or `(B, 1, ...)` beside images.

    Args:
        owner: who asks.
        name: of the number.
        value: it; of several `(B,)`, or as they stand beside images already.
        like: images, `(B, ...)`.

    Raises:
        ValueError: something else.
    """
    beside = (1,) * (like.dim() - 1)
    if isinstance(value, Tensor):
        shapes = ((), (1,), like.shape[:1], (1, *beside), (len(like), *beside))
        fits = value.shape in shapes and not value.is_complex() and value.dtype != torch.bool
    else:
        fits = is_number(value)
    if not fits:
        got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{owner}({name}=...): got {got}, expected a number > 0, or one per sample, ({len(like)},)")
    found = torch.as_tensor(value, dtype=like.real.dtype, device=like.device)
    positive = (found.detach() > 0) & found.detach().isfinite()
    if can_look(found) and not bool(positive.all()):
        raise ValueError(f"{owner}({name}={value!r}): expected a finite number > 0")
    return found.reshape(-1, *beside)


def check_damping(owner: str, damping: Any, like: Tensor) -> float | Tensor:
    """Zero, or as `check_positive`, of a damping."""
    none = is_number(damping) and damping == 0
    return 0.0 if none else check_positive(owner, "damping", damping, like)


def check_mask(owner: str, mask: Any, batched: bool = True) -> None:
    """Refuses what is no mask, and one that shows nothing, of some sample where it may be `batched`.

    Raises:
        TypeError: no tensor of bool.
        ValueError: it shows nothing.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{owner}(mask=...): got {kind(mask)}, expected a tensor of torch.bool; try mask > 0")
    if not can_look(mask):
        return
    seen = mask.flatten(1).any(1) if batched and mask.dim() > 2 else mask.any()
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

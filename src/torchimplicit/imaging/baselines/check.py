"""What all baselines ask of what they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.imaging.physics.check import can_look, is_real_or_complex, kind
from torchimplicit.imaging.physics.normal import is_operator


def adjoint_image(name: str, y: Any, op: Any) -> Tensor:
    """$A^H y$, if these are measurements and an operator.

    Args:
        name: who asks.
        y: measurements, `(B, ...)`.
        op: $A$.

    Raises:
        TypeError: no operator, or measurements that are not floating or complex.
    """
    if not is_operator(op):
        raise TypeError(
            f"{name}(op=...): got a {type(op).__name__}, expected an operator, with methods A(x) and A_adjoint(y); try "
            "ti.imaging.Sense(maps, mask)"
        )
    if not is_real_or_complex(y):
        raise TypeError(f"{name}(y=...): got {kind(y)}, expected a floating or complex one; try y.float()")
    image: Tensor = op.A_adjoint(y)
    return image


def check_weight(name: str, weight: Any, like: Tensor, word: str = "weight") -> Tensor:
    """A number > 0, or one per sample, as a tensor `(1, 1, ...)` or `(B, 1, ...)` beside images.

    Args:
        name: who asks.
        weight: the number.
        like: images, `(B, ...)`.
        word: what it is called.

    Raises:
        ValueError: something else.
    """
    fits = weight.shape in ((), (1,), like.shape[:1]) if isinstance(weight, Tensor) else is_number(weight)
    if not fits or (isinstance(weight, Tensor) and (weight.is_complex() or weight.dtype == torch.bool)):
        got = f"shape {tuple(weight.shape)}, {weight.dtype}" if isinstance(weight, Tensor) else repr(weight)
        raise ValueError(f"{name}({word}=...): got {got}, expected a number > 0, or one per sample, ({len(like)},)")
    found = torch.as_tensor(weight, dtype=like.real.dtype, device=like.device)
    positive = (found.detach() > 0) & found.detach().isfinite()
    if can_look(found) and not bool(positive.all()):
        raise ValueError(f"{name}({word}={weight!r}): expected a finite number > 0")
    return found.reshape(-1, *(1,) * (like.dim() - 1))

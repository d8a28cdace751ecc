"""What is asked of a linear operator that measures images; `torchimplicit.imaging` has some."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torchimplicit.core.independence import noise


@runtime_checkable
class Measuring(Protocol):
    """A linear operator of images: `A(x)` and `A_adjoint(y)`, for every sample by itself; anything that has both.

    Where $A A^T$ is a multiple of the identity, an attribute `coisometry` says which; None where it is not, or unknown.
    """

    def A(self, x: Tensor) -> Tensor:
        """`A x`, `(B, ...)`, of images `(B, *shape)`."""
        ...

    def A_adjoint(self, y: Tensor) -> Tensor:
        """`A^T y`, `(B, *shape)`."""
        ...


def check_operator(owner: str, operator: Any, y: Any, like: Tensor) -> Tensor:
    """Measurements of every sample, `(B, ...)`, if they fit the operator and its adjoint is one.

    Args:
        owner: who asks.
        operator: what measures.
        y: measurements, `(B, ...)` or `(1, ...)`.
        like: images, `(B, *shape)`.

    Raises:
        TypeError: no operator, or no floating measurements.
        ValueError: another shape, NaN, or an adjoint that is none.
    """
    if not isinstance(operator, Measuring):
        raise TypeError(
            f"{owner}(operator=...): got a {type(operator).__name__}, expected something with A(x) and A_adjoint(y); "
            "try ti.imaging.Inpainting(mask)"
        )
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{owner}(y=...): got {got}, expected a floating tensor, such as operator.A(images)")
    if not bool(y.detach().isfinite().all()):
        raise ValueError(
            f"{owner}(y=...): got NaN or infinity, expected finite measurements; try an operator that leaves out what "
            "was not measured"
        )
    x = noise(like.new_empty(1, *like.shape[1:]))
    seen = operator.A(x)
    if y.dim() != seen.dim() or y.shape[1:] != seen.shape[1:] or len(y) not in (1, len(like)):
        expected = ", ".join(map(str, seen.shape[1:]))
        raise ValueError(f"{owner}(y=...): got shape {tuple(y.shape)}, expected ({len(like)}, {expected}) or (1, ...)")
    back = noise(seen)
    one, other = (seen * back).sum(), (x * operator.A_adjoint(back)).sum()
    if abs(one - other) > 1e3 * torch.finfo(x.dtype).eps * (seen.norm() * back.norm()):
        raise ValueError(
            f"{owner}(operator=...): got an adjoint that is none: <A x, y> = {float(one):.4g} and <x, A^T y> = "
            f"{float(other):.4g}; expected the same"
        )
    return y.detach().to(like).expand(len(like), *y.shape[1:])

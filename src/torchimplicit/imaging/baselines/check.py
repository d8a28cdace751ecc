"""What all baselines ask of what they are given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchimplicit.imaging.physics.check import is_real_or_complex, kind
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

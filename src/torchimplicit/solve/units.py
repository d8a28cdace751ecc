"""The units of unknowns, as the Hessian tells them: with them a descent does not depend on those that are given."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.linear import Jacobian
from torchimplicit.solve.ahead import DENSE

OFTEN = 3  # steps after which the units are looked at again, the first time; then whenever there are twice as many


def due(age: int) -> bool:
    """Whether units are to be looked at after so many steps: at the start, and ever more rarely."""
    rounds, rest = divmod(age, OFTEN)
    return not rest and not rounds & (rounds - 1)


def hessian_of(jacobian: Jacobian, z: Tensor) -> Tensor | None:
    """The Hessians `(B, n, n)`; None where there are too many unknowns, or inside a transform of `torch.func`."""
    return None if z.shape[1] > DENSE or transforms.active() else jacobian.dense(z).detach()


def units_of(hessian: Tensor) -> Tensor:
    """Units of the unknowns in which no row of the Hessian stands out, whatever units they have, `(B, n)`.

    In them its diagonal is of ones up to the sign; where that is zero, the largest entry of the row is.

    Args:
        hessian: `(B, n, n)`.
    """
    matrix = hessian.abs()
    size = matrix.diagonal(dim1=1, dim2=2).sqrt()
    units = torch.where((size > 0) & size.isfinite(), 1 / size, 1.0)
    rest = torch.where(size > 0, 1.0, (matrix * units.unsqueeze(1)).amax(2))  # rows without a diagonal
    found = torch.where(rest > 0, units / rest, 1.0).nan_to_num(1.0, 1.0, 1.0)
    return found.contiguous()  # a sum over what lies behind one another is rounded by how many samples there are

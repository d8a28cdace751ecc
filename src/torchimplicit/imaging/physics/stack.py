"""Several measurements of one image."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.imaging.physics.normal import added, gram
from torchimplicit.imaging.physics.operator import Several


class Stack(Several):
    r"""Several measurements of one image, $y = (P x, Q x)$, `(B, count, ...)`.

    Args:
        *operators: of measurements of one shape.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> seen = ti.imaging.Inpainting(torch.tensor([True, False, True]))
        >>> ti.imaging.Stack(seen, 2 * seen).A(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[[1., 3.],
                 [2., 6.]]])
    """

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        return torch.stack(self.measure(x), 1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        if y.dim() < 2 or y.shape[1] != self.count:
            raise ValueError(f"Stack: got measurements {tuple(y.shape)}, expected (B, {self.count}, ...)")
        return added([operator.A_adjoint(part) for operator, part in zip(self.operators, y.unbind(1), strict=True)])

    def gram(self, x: Tensor) -> Tensor:
        """See `Operator.gram`."""
        return added([gram(operator, x) for operator in self.operators])

"""What the cells of reconstruction have in common: a map of an image, a measurement and the physics between them."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number
from torchimplicit.core.stand_in import alone
from torchimplicit.imaging.physics.normal import plain_like
from torchimplicit.imaging.reconstruct.prior import Prior
from torchimplicit.linear import eigenvalue_range, probe
from torchimplicit.solve import PreparedMap

PRODUCTS = 30  # with the Gram operator, of a norm that the operator does not know


class Cell(PreparedMap):
    r"""Base of the cells: `cell(z, y, op) -> z`, whose fixed point is the reconstruction of the measurement `y`.

    The physics `op` is an argument: anything with `A(x)` and `A_adjoint(y)`. As a module it is differentiated with the
    rest, by its maps, kernels or angles. A subclass gives `forward`, and what it knows of the map: `contraction` and
    `symmetric`.

    Args:
        prior: the prior; a network becomes none by itself, see `DnCNN`, `averaged`, `GradientStep`.
        eps: $\epsilon \ge 0$ of the term $\epsilon |x|^2 / 2$, which makes a convex energy strongly convex: one
            solution, and a bound of the distance to it. It draws towards zero what neither measurement nor prior holds.

    Attributes:
        symmetric: whether the map's Jacobian is symmetric with eigenvalues below one, so that `CG` solves backward.
    """

    def __init__(self, prior: Prior, eps: float):
        super().__init__()
        name = type(self).__name__
        if not isinstance(prior, Prior):
            raise TypeError(
                f"{name}(prior=...): got a {type(prior).__name__}, expected a prior of torchimplicit.imaging; try "
                "averaged(net) or GradientStep(net) for a network, or a subclass of imaging.Prior"
            )
        if not (is_number(eps) and 0 <= eps < math.inf):
            raise ValueError(f"{name}(eps={eps!r}): expected a finite number >= 0")
        self.prior, self.eps = prior, eps
        self._square: Tensor | None = None

    @property
    def symmetric(self) -> bool:
        """See the class."""
        return False

    def start(self, y: Tensor, op: Any) -> Any:
        """Where to start for a measurement: what the operator guesses, or the adjoint image, scaled by its norm."""
        guess = op.guess(y) if hasattr(op, "guess") else None
        if guess is not None:
            return guess
        x = op.A_adjoint(y)
        return x / column(self.square(op, x).clamp_min(torch.finfo(x.dtype).tiny), x)

    def output(self, z: Any, y: Tensor, op: Any) -> Tensor:
        """The image of a state."""
        return z

    def contraction(self, op: Any, like: Any) -> Tensor | float:
        """A bound of the map's Lipschitz constant for this operator, one for all samples or `(B,)`.

        One or more, or infinite, says nothing. `like` is a state.
        """
        return math.inf

    def gap(self, z: Any, y: Tensor, op: Any, products: int = 8) -> Tensor | None:
        """A proved bound of how far the energy at a state is above its least, `(B,)`; None of cells that know none."""
        return None

    def inverse(self, op: Any, like: Any) -> Tensor | float:
        r"""A bound of $\|(I - J)^{-1}\|$ for this operator, one for all samples or `(B,)`; infinite says nothing."""
        share = 1 - torch.as_tensor(self.contraction(op, like), device=pytree.tree_leaves(like)[0].device)
        return torch.where(share > 0, 1 / share, torch.inf)

    def begin(self, z0: Any, args: tuple, batch_dims: int) -> PreparedMap:
        """A copy that knows the operator's norm, so that a solve looks for it once."""
        own: Any = alone(self).copies[id(self)]
        own._square = self.square(args[1], z0)
        return own

    def take(self, rows: Tensor) -> Cell:
        """The cell of some of the samples."""
        if self._square is None or self._square.numel() == 1:
            return self
        own = copy.copy(self)
        own._square = self._square[rows]
        return own

    @torch.no_grad()
    def square(self, op: Any, like: Any) -> Tensor:
        r"""$\|A\|^2$, or a bound of it, `()`, `(1,)` or `(B,)`; a constant, by which no solution may depend on it."""
        if self._square is not None:
            return self._square
        image = plain_like(type(self).__name__, op, like[0] if isinstance(like, tuple) else like)
        norm = getattr(op, "norm_bound", getattr(op, "norm", None))
        if norm is not None:
            return transforms.plain(torch.as_tensor(norm(image), device=image.device).detach().to(image.real).square())
        flat = torch.view_as_real(image).flatten(1) if image.is_complex() else image.flatten(1)

        def product(v: Tensor) -> Tensor:
            real = v.reshape(*image.shape, 2) if image.is_complex() else v.reshape(image.shape)
            pulled = op.A_adjoint(op.A(torch.view_as_complex(real.contiguous()) if image.is_complex() else real))
            return torch.view_as_real(pulled).flatten(1) if image.is_complex() else pulled.flatten(1)

        found = eigenvalue_range(product, probe(flat), PRODUCTS)
        return transforms.plain(found.highest + found.play)

    def residual(self, x: Tensor, y: Tensor, op: Any) -> Tensor:
        r"""The gradient of the data term and of `eps`: $A^*(A x - y) + \epsilon x$."""
        slope = op.A_adjoint(op.A(x) - y)
        return slope + self.eps * x if self.eps else slope

    def extra_repr(self) -> str:
        """The strong convexity, for `print`."""
        return f"eps={self.eps:g}"


def column(values: Tensor, x: Tensor) -> Tensor:
    """One number for all samples, or `(B,)`, to be multiplied with images `(B, ...)`."""
    return values.reshape(*values.shape, *(1,) * (x.dim() - 1)) if values.dim() else values

"""Products of cones: their layout in a vector, and the projection onto them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from torchimplicit.core.options import is_count, require, require_count
from torchimplicit.optim.cone.curved import project_exponential, project_power
from torchimplicit.optim.cone.symmetric import project_second_order, project_semidefinite


@dataclass(frozen=True)
class Cones:
    r"""A product of cones, in the order in which their parts stand in a vector of length `size`.

    Args:
        zero: length of the part that must be zero (equalities).
        nonneg: length of the part that must not be negative (inequalities).
        soc: lengths of the second-order cones $\{(t, x): |x| \le t\}$, each >= 1.
        psd: orders of the cones of positive semidefinite matrices. A matrix of order $k$ stands as the $k(k+1)/2$
            entries of its upper triangle, column by column, those off the diagonal times $\sqrt 2$, so that lengths are
            those of the Frobenius norm.
        exp: number of exponential cones, the closures of $\{(x, y, z): y > 0, y e^{x/y} \le z\}$.
        power: exponents of the power cones $\{(x, z): \prod_i x_i^{\alpha_i} \ge |z|, x \ge 0\}$, one tuple a cone,
            positive and of sum 1; `z` is one number.
    """

    zero: int = 0
    nonneg: int = 0
    soc: tuple[int, ...] = ()
    psd: tuple[int, ...] = ()
    exp: int = 0
    power: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "zero", "nonneg", "exp", least=0)
        for name in ("soc", "psd"):
            counts = getattr(self, name)
            require(self, name, isinstance(counts, tuple) and all(map(is_count, counts)), "a tuple of integers >= 1")
        sound = isinstance(self.power, tuple) and all(
            isinstance(alpha, tuple) and len(alpha) > 1 and min(alpha) > 0 and abs(sum(alpha) - 1) < 1e-9
            for alpha in self.power
        )
        require(self, "power", sound, "a tuple of tuples of positive exponents, each of sum 1")

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(count * width for count, width, _ in self.parts())

    @property
    def polyhedral(self) -> bool:
        """Whether there are only equalities and inequalities."""
        return not (self.soc or self.psd or self.exp or self.power)

    def parts(self) -> Iterator[tuple[int, int, Callable[[Tensor], Tensor]]]:
        """Runs of equal cones: how many, their length, and the projection of `(..., length)` onto one of them."""
        if self.zero:
            yield self.zero, 1, torch.zeros_like
        if self.nonneg:
            yield self.nonneg, 1, torch.relu
        for width, run in groupby(self.soc):
            yield len(list(run)), width, project_second_order
        for order, run in groupby(self.psd):
            yield len(list(run)), order * (order + 1) // 2, partial(project_semidefinite, order=order)
        if self.exp:
            yield self.exp, 3, project_exponential
        for alpha, run in groupby(self.power):
            yield len(list(run)), len(alpha) + 1, partial(project_power, alpha=alpha)

    def project(self, v: Tensor) -> Tensor:
        r"""The point of the product of cones that is nearest to `v`, `(..., size)`, differentiable to the third order.

        With it the dual cone is reached, too: $\Pi_{K^*}(-v) = \Pi_K(v) - v$ (Moreau). On the kinks (the boundary of a
        cone, seen from inside; a coordinate of exactly zero) the derivative is that of one of the sides.
        """
        parts = list(self.parts())
        pieces = v.split([count * width for count, width, _ in parts], dim=-1)
        projected = [
            onto(piece.unflatten(-1, (count, width))).flatten(-2)
            for piece, (count, width, onto) in zip(pieces, parts, strict=True)
        ]
        return torch.cat(projected, dim=-1) if projected else v

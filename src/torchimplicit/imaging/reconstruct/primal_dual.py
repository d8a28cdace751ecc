"""Reconstruction by a primal-dual splitting, whose state proves how good its image is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number
from torchimplicit.core.tree import Layout, norm
from torchimplicit.imaging.physics.normal import gram
from torchimplicit.imaging.reconstruct.analysis import Analysis
from torchimplicit.imaging.reconstruct.cell import Cell, column
from torchimplicit.imaging.reconstruct.distance import inverse_form
from torchimplicit.solve import PreparedMap

SLACK = 0.99  # of the longest step, for a norm that is known from below
LEAST = 0.99  # of eps: a lower bound of the spectrum that no Ritz value meets by accident


class PrimalDual(Cell):
    r"""The primal-dual hybrid gradient method on the pair $(x, u)$ of the image and the scaled dual, $u = s\, p$.

    $$ x^+ = x - \tau (A^* (A x - y) + \epsilon x + K^* p), \quad
       p^+ = \mathrm{prox}_{\sigma g^*}(p + \sigma K (2 x^+ - x)) . $$

    Its fixed points are the minima of $P(x) = |A x - y|^2 / 2 + \epsilon |x|^2 / 2 + g(K x)$, with the prior's map $K$
    and penalty $g$, and $p$, a slope of $g$ at $K x$. It needs no slope of the prior and no system with the operator:
    total variation itself, where `Gradient` has a smoothed one. The steps are $\sigma = \beta L / \|K\|^2$ and $\tau =
    1 / (L (1/2 + \beta))$ with $L = \|A\|^2 + \epsilon$, so that $1 / \tau - \sigma \|K\|^2 \ge L / 2$; no solution
    depends on them. With $s^2 = \tau / \sigma$ both parts of the state are in units of the image.

    Any $p$ within the bounds of $g^*$ gives a lower bound of $P$, so a state comes with its *duality gap*, at least
    $P(x) - \min P$. By the equations of both parts it is

    $$ \tfrac12 r^* (A^* A + \epsilon)^{-1} r + \bigl( g(K x) + g^*(p) - \langle K x, p \rangle \bigr), \quad
       r = A^* (A x - y) + \epsilon x + K^* p, $$

    a sum of two parts that are not negative. As $P$ is strongly convex, $|x - x^*|^2 \le 2\, \mathrm{gap} / \epsilon$:
    see `gap`, and `report.gap` and `report.bound` of `Reconstruction`. Measured on blurs and coils, where the solve
    stops at a relative step of 1e-6 the gap is 1.0 to 1.2 times the true excess without a width and `eps=1e-3`; after
    a loose solve, and with a tiny `eps`, it is mostly $r$'s, and a hundred times too large.

    Where the penalty has a width, the state is determined with the image, and gradients are well conditioned: take one
    to train. Without, $p$ is not unique where the image is flat: the gradient by the image exists nonetheless, but its
    solve is long. Badly conditioned operators take many steps: on a slab of a head, fourfold undersampled,
    `total_variation`, which solves with the operator, took 0.3 s to where this one was after 3 s.

    Source: A. Chambolle, T. Pock, J. Math. Imaging Vis. 40 (2011) 120, algorithm 1 and equation 10, the gap; L. Condat,
    J. Optim. Theory Appl. 158 (2013) 460, algorithm 3.1 and theorem 3.1, for the slope of the data term in place of
    its proximal map, and the steps.

    Args:
        prior: an `Analysis`, such as `Analysis(Differences(), weight=2e-4)`, total variation.
        balance: $\beta > 0$, how long dual steps are beside those of the image.
        eps: see `Cell`; 0 proves nothing, and the gap is infinite.

    Raises:
        TypeError: the prior is no `Analysis`.
        ValueError: an option is impossible.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import (
        ...     Analysis,
        ...     Blur,
        ...     Differences,
        ...     PrimalDual,
        ...     Reconstruction,
        ... )
        >>> op = Blur(torch.full((3, 3), 1 / 9, dtype=torch.float64))
        >>> layer = Reconstruction(
        ...     PrimalDual(Analysis(Differences(), weight=0.01), eps=1e-2)
        ... )
        >>> with torch.no_grad():
        ...     x = layer(op.A(torch.rand(2, 1, 16, 16, dtype=torch.float64)), op)
        >>> layer.report.converged, bool((layer.report.gap < 1e-2).all())
        (True, True)
    """

    prior: Analysis

    def __init__(self, prior: Analysis, *, balance: float = 0.3, eps: float = 1e-5):
        super().__init__(prior, eps)
        if not isinstance(prior, Analysis):
            raise TypeError(
                f"PrimalDual(prior=...): got a {type(prior).__name__}, expected an Analysis, by a linear map and a "
                "penalty; try Analysis(Differences(), weight=1e-3), or the cell Gradient"
            )
        if not (is_number(balance) and 0 < balance < math.inf):
            raise ValueError(f"PrimalDual(balance={balance!r}): expected a finite number > 0")
        self.balance = balance
        self._bound: Tensor | float | None = None

    def begin(self, z0: Any, args: tuple, batch_dims: int) -> PreparedMap:
        """A copy that knows both norms."""
        own: Any = super().begin(z0, args, batch_dims)
        bound = self._square_of_map()
        own._bound = transforms.plain(bound) if isinstance(bound, Tensor) else bound
        return own

    def forward(self, z: tuple[Tensor, Tensor], y: Tensor, op: Any) -> tuple[Tensor, Tensor]:
        """A step of the image down the data term, and one of the dual up to the image's coefficients."""
        x, u = z
        frame, (tau, sigma) = self.prior.frame, self._steps(op, x)
        cross = (sigma * tau).sqrt()
        moved = x - tau * self.residual(x, y, op) - cross * frame.adjoint(u)
        u = u + cross.unsqueeze(-1) * frame.analyse(2 * moved - x)
        return moved, self.prior.dual(u, sigma, (tau / sigma).sqrt())

    def start(self, y: Tensor, op: Any) -> tuple[Tensor, Tensor]:
        """The adjoint image, and no dual."""
        x = super().start(y, op)
        return x, torch.zeros_like(self.prior.frame.analyse(x))

    def output(self, z: tuple[Tensor, Tensor], y: Tensor, op: Any) -> Tensor:
        """The image of the pair."""
        return z[0]

    @torch.no_grad()
    def gap(self, z: tuple[Tensor, Tensor], y: Tensor, op: Any, products: int = 8) -> Tensor:
        r"""The duality gap of a state, a proved bound of $P(x) - \min P$, `(B,)`, in float64.

        The dual is first cut to its bounds, which a solver may have overstepped. Of $r^* (A^* A + \epsilon)^{-1} r$ the
        Gauss-Radau rule bounds it from above. What rounding leaves of $r$ in single precision counts by $1 / \epsilon$.

        Args:
            z: the state.
            y: the measurement.
            op: the operator.
            products: with the Gram operator; 0 takes $|r|^2 / \epsilon$.
        """
        x, u = z
        tau, sigma = self._steps(op, x)
        p = self.prior.feasible(u / (tau / sigma).sqrt().unsqueeze(-1))
        layout = Layout(x)
        slope = layout.flatten(self.residual(x, y, op) + self.prior.frame.adjoint(p))

        def product(rows: Tensor) -> Tensor:
            v = layout.unflatten(rows)
            return layout.flatten(gram(op, v) + self.eps * v)

        data = torch.where(slope.any(1), norm(slope).double().square() / self.eps if self.eps else torch.inf, 0.0)
        if self.eps and products:
            least = torch.full_like(data, LEAST * self.eps)
            data = torch.fmin(data, inverse_form(product, slope, least, products))
        return 0.5 * data + self.prior.misfit(x, p)

    @torch.no_grad()  # the solution does not depend on them
    def _steps(self, op: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the image and of the dual, as images have them."""
        steepest = column(self.square(op, x) + self.eps, x).clamp_min(torch.finfo(x.dtype).tiny)
        tau, sigma = SLACK / (steepest * (0.5 + self.balance)), self.balance * steepest / self._square_of_map()
        return tau, sigma

    def _square_of_map(self) -> Tensor | float:
        return self.prior.frame.bound if self._bound is None else self._bound

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"balance={self.balance:g}, {super().extra_repr()}"

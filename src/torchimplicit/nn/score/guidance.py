"""Samples that agree with a measurement: the posterior of a linear inverse problem, with a score model as the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.status import Status
from torchimplicit.core.tree import norm
from torchimplicit.linear import CG, GMRES
from torchimplicit.linear.solver import LinearResult
from torchimplicit.nn.paths.vjp import VJP, linearise
from torchimplicit.nn.score.operator import check_operator
from torchimplicit.nn.score.samplers.base import Conditioned

Covariance = Literal["isotropic", "tweedie"]


@dataclass(frozen=True, eq=False)
class Guidance:
    r"""What was measured of each sample, $y = A x + \mathrm{std}\, n$: turns a model's samples to those that agree.

    At every level the image behind the noise is taken for normal around $D$ with a covariance $C$, so that
    $D + s^2 J^T A^T (A C A^T + \mathrm{std}^2)^{-1} (y - A D)$ is the denoiser of the posterior, $J = \partial D /
    \partial u$. With the covariance "isotropic", $C = r^2 I$ and $r^2 = s^2 \mathrm{d}^2 / (s^2 + \mathrm{d}^2)$ for
    data of standard deviation $d$, a product with $J^T$ more an evaluation; it is exact for normal data of one
    variance. With "tweedie", $C = s^2 J$, which is the true covariance, and the equations are solved by a few steps of
    GMRES, a product with $J^T$ each; exact for normal data of any covariance. Of a network $J$ is neither symmetric nor
    positive: more steps than a few are for scores that are exact, and make samples of others run away. What so few
    leave of the equations is no failure, but told: `report.unsolved`, relative, the most at any level, of every sample.

    For other data both are biased: modes get the wrong shares, and more so by the probability flow, where early errors
    stay. `PredictorCorrector` with a few corrections halves that. Not for a posterior that must be exact. Samples have
    no gradient.

    Source: J. Song et al. (PiGDM), ICLR 2023; the true covariance: B. Boys et al. (TMPD), arXiv 2310.06721, and its
    equations by a few Krylov steps, F. Rozet et al., arXiv 2405.13712.

    Args:
        operator: $A$: an operator of `torchimplicit.imaging`, or anything with `A(x)` and `A_adjoint(y)`.
        y: the measurements, `(B, ...)`, or `(1, ...)` for all samples.
        std: the noise's standard deviation; above 0 unless $A A^T$ is a multiple of the identity.
        covariance: "isotropic" or "tweedie", see above.
        products: how many steps of GMRES, with "tweedie".

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0)
        >>> seen = ti.imaging.Inpainting(torch.tensor([True, False]))
        >>> measured = ti.nn.Guidance(seen, torch.tensor([[0.7]]))
        >>> model.sample(3, seed=1, condition=measured)[:, 0]
        tensor([0.7000, 0.7000, 0.7000])
    """

    operator: Any
    y: Tensor
    std: float = 0.0
    covariance: Covariance = "isotropic"
    products: int = 3

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "std", is_number(self.std) and self.std >= 0, "a number >= 0")
        require_count(self, "products")
        require(self, "covariance", self.covariance in ("isotropic", "tweedie"), "'isotropic' or 'tweedie'")

    def around(self, denoise: Conditioned, like: Tensor, spread: float) -> Guided:
        """The denoiser of the posterior.

        Args:
            denoise: that of the prior.
            like: samples, `(B, *shape)`.
            spread: the data's standard deviation.

        Raises:
            TypeError: no operator, or no floating measurements.
            ValueError: measurements of another shape, or an adjoint that is none.
        """
        return Guided(denoise, self, check_operator("Guidance", self.operator, self.y, like), spread)


class Guided(Conditioned):
    """A denoiser of what agrees with a measurement; see `Guidance`.

    Attributes:
        failed: samples whose equations, those of the isotropic covariance, were not solved at some level, bool `(B,)`.
        unsolved: the largest residual of a sample's equations at any level, over their right-hand side, `(B,)`.
    """

    def __init__(self, prior: Conditioned, guidance: Guidance, y: Tensor, spread: float):
        super().__init__()
        self.prior, self.guidance, self.y, self.spread = prior, guidance, y, spread
        self.failed: Tensor = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self.unsolved: Tensor = torch.zeros(len(y), dtype=y.dtype, device=y.device)

    def forward(self, u: Tensor, s: Tensor) -> Tensor:
        """See `Conditioned.forward`."""
        with torch.no_grad():
            found, vjp = linearise(lambda u: self.prior(u, s), u)
            self.calls = self.prior.calls
            back = self.guidance.operator.A_adjoint(self._weights(self.y - self.guidance.operator.A(found), s, vjp))
            return found + s.square() * vjp(back)

    def _weights(self, miss: Tensor, s: Tensor, vjp: VJP) -> Tensor:
        """`(A C A^T + std^2)^-1 miss`."""
        operator, noise = self.guidance.operator, self.guidance.std**2
        squared = s.square().reshape(-1, *(1,) * (miss.dim() - 1))
        if self.guidance.covariance == "tweedie":
            steps = self.guidance.products
            product = partial(_product, lambda v: squared * operator.A(vjp(operator.A_adjoint(v))) + noise * v, miss)
            return self._told(GMRES(rtol=1e-6, restart=steps, max_steps=steps).run(product, miss.flatten(1)), miss)
        squared = squared * self.spread**2 / (squared + self.spread**2)
        coisometry = getattr(operator, "coisometry", None)
        if coisometry is not None:
            return miss / (squared * coisometry + noise)
        product = partial(_product, lambda v: squared * operator.A(operator.A_adjoint(v)) + noise * v, miss)
        result = CG(rtol=1e-4, max_steps=200).run(product, miss.flatten(1))
        self.failed = self.failed | (result.report.status != Status.CONVERGED)
        return self._told(result, miss)

    def _told(self, result: LinearResult, miss: Tensor) -> Tensor:
        """The solution; notes what is left of the equations."""
        right = norm(miss.flatten(1)) / miss[0].numel() ** 0.5
        left = torch.where(right > 0, result.report.residual / right, 0.0)
        self.unsolved = torch.fmax(self.unsolved, left)
        return result.x.view_as(miss)


def _product(apply: Callable[[Tensor], Tensor], like: Tensor, rows: Tensor) -> Tensor:
    """A linear map of measurements, on the rows of a matrix `(B, m)`."""
    return apply(rows.view_as(like)).flatten(1)

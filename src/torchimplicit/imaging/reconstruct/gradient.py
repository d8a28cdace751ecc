"""Reconstruction by a step down an energy, and by a step down the data term and a denoiser."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.imaging.positive import below, logarithm, under
from torchimplicit.imaging.reconstruct.cell import Cell, column
from torchimplicit.imaging.reconstruct.prior import Prior

CAP = 2.0  # a step down the data term of a norm of one is nonexpansive up to here


class Gradient(Cell):
    r"""DE-Grad: $z \mapsto z - \eta (A^*(A z - y) + \epsilon z + \lambda \nabla R(z))$, gradient descent.

    With a convex prior such as `Ridge` the solution is the minimum of $|A x - y|^2 / 2 + \epsilon |x|^2 / 2 + \lambda
    R(x)$, does not depend on the step, and is found from every start: the step is $1 / (\|A\|^2 + \epsilon + \lambda
    L)$. The Jacobian of the map is symmetric, so that `CG` solves backward; with `eps` the map
    contracts by $1 - \eta \epsilon$ at least, and all that is claimed of it is proved. The cell to take first. Where
    the operator is badly conditioned it takes many steps: see `HalfQuadratic` and `DouglasRachford`.

    Source: D. Gilton, G. Ongie, R. Willett, Deep equilibrium architectures for inverse problems in imaging, IEEE Trans.
    Comput. Imaging 7 (2021) 1123, arXiv 2102.07944, section III-A.

    Args:
        prior: by its slope.
        weight: $\lambda$ to start with, > 0, learned; None is one, for priors with a scale of their own as `Ridge`.
        step: $\eta$, for priors whose slope has no known Lipschitz constant; None chooses a safe one at every solve.
        eps: see `Cell`.

    Raises:
        TypeError: the prior is none.
        ValueError: an option is impossible, or the step must be given and is not.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import Blur, Gradient, Reconstruction, Ridge
        >>> op = Blur(torch.full((3, 3), 1 / 9))
        >>> layer = Reconstruction(Gradient(Ridge(filters=4, taps=3)))
        >>> y = op.A(torch.rand(2, 1, 16, 16))
        >>> layer(y, op).shape, layer.report.converged
        (torch.Size([2, 1, 16, 16]), True)
    """

    def __init__(self, prior: Prior, *, weight: float | None = None, step: float | None = None, eps: float = 1e-5):
        super().__init__(prior, eps)
        if not (step is None or (is_number(step) and 0 < step < math.inf)):
            raise ValueError(f"Gradient(step={step!r}): expected None or a finite number > 0")
        if step is None and not math.isfinite(float(torch.as_tensor(prior.lipschitz(), device="cpu").detach())):
            raise ValueError(
                f"Gradient(step=None): got a {type(prior).__name__}, which has no known Lipschitz constant to choose "
                "a step by, expected a step; try step=0.5, or a prior with a bound"
            )
        self.step = step
        self.log_weight = None if weight is None else logarithm(self, "weight", weight)

    @property
    def symmetric(self) -> bool:
        """With a convex prior."""
        return self.prior.convex

    def forward(self, z: Tensor, y: Tensor, op: Any) -> Tensor:
        """A step down the energy."""
        slope = self.residual(z, y, op) + self._weighted(self.prior.slope(z))
        return z - column(self._step(op, z), z) * slope

    def contraction(self, op: Any, like: Any) -> Tensor | float:
        """One minus step times `eps` where the prior is convex and the step is safe; see `Cell`."""
        if not self.prior.convex:
            return math.inf
        step, steepest = self._step(op, like), self._steepest(op, like)
        return torch.maximum(1 - step * self.eps, step * steepest - 1)

    def _step(self, op: Any, z: Tensor) -> Tensor:
        if self.step is not None:
            return torch.as_tensor(self.step, device=z.device).to(z.real)
        return 1 / self._steepest(op, z)

    @torch.no_grad()  # the solution does not depend on it
    def _steepest(self, op: Any, z: Tensor) -> Tensor:
        return self.square(op, z) + self.eps + self._weighted(self.prior.lipschitz())

    def _weighted(self, slope: Any) -> Any:
        return slope if self.log_weight is None else self.log_weight.exp() * slope


class Proximal(Cell):
    r"""DE-Prox: $z \mapsto D(z - \eta (A^*(A z - y) + \epsilon z))$, a step down the data term, and a denoiser.

    Nothing keeps a free denoiser from driving the map out of contraction: trained ones are solved by `Anderson` alone,
    and some of their training solves fail, which the report says sample by sample. A nonexpansive $D$ (`Ridge`,
    `averaged`) and `eps` make it a contraction by $1 - \eta \epsilon$.

    Source: as `Gradient`, section III-B.

    Args:
        prior: by its denoiser.
        step: $\eta$ to start with, in (0, 2), learned; for an operator of norm one. An operator of another norm is
            better scaled, `op * (1 / op.norm())`, and its measurement with it.
        eps: see `Cell`.

    Raises:
        TypeError: the prior is none.
        ValueError: an option is impossible.
    """

    def __init__(self, prior: Prior, *, step: float = 1.0, eps: float = 0.0):
        super().__init__(prior, eps)
        self.raw_step = below(self, "step", step, CAP)

    def forward(self, z: Tensor, y: Tensor, op: Any) -> Tensor:
        """A step down the data term, and the denoiser."""
        return self.prior(z - under(CAP, self.raw_step) * self.residual(z, y, op))

    @torch.no_grad()
    def contraction(self, op: Any, like: Any) -> Tensor | float:
        """That of the step times the denoiser's expansion; see `Cell`."""
        step = under(CAP, self.raw_step)
        steepest = self.square(op, like) + self.eps
        return self.prior.expansion() * torch.maximum(1 - step * self.eps, step * steepest - 1)

    def advice(self, z: Any, args: tuple, batch_dims: int) -> str:
        """Whether the step is too long for the operator."""
        step, square = float(under(CAP, self.raw_step).detach()), float(self.square(args[1], z).max())
        if step * (square + self.eps) < 2:
            return ""
        return (
            f"The step {step:.2g} is too long for an operator of norm {square**0.5:.3g}, expected < "
            f"{2 / (square + self.eps):.2g}: scale the operator and its measurement to a norm of one."
        )

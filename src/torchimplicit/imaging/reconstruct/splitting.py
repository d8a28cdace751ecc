"""Reconstruction by cells whose data step inverts: it costs a solve, and a badly conditioned operator no steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchimplicit.imaging.physics.normal import proximal, proximal_status
from torchimplicit.imaging.positive import logarithm
from torchimplicit.imaging.reconstruct.cell import Cell
from torchimplicit.imaging.reconstruct.prior import Prior
from torchimplicit.solve.splitting import refuse_mapped


class _Splitting(Cell):
    """What these have: a step, learned, and a data step by the operator's `prox`."""

    def __init__(self, prior: Prior, *, step: float = 10.0, eps: float = 0.0):
        super().__init__(prior, eps)
        self.log_step = logarithm(self, "step", step)

    def proximal(self, v: Tensor, y: Tensor, op: Any) -> Tensor:
        r"""The $x$ that minimises $|A x - y|^2 / 2 + \epsilon |x|^2 / 2 + |x - v|^2 / (2 \alpha)$."""
        return proximal(op, *self._system(v, y))

    def _system(self, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of what `op.prox` is that."""
        step = self.log_step.exp()
        shrink = 1 + self.eps * step
        return v / shrink, y, step / shrink

    def before(self, z: Any) -> Tensor:
        """What the data step is taken from at a state."""
        return z

    def inner(self, z: Any, args: tuple, batch_dims: int) -> Tensor | None:
        """How the data step's own solve ends, where it has one."""
        with torch.no_grad():
            return proximal_status(args[1], *self._system(self.before(z), args[0]))

    def advice(self, z: Any, args: tuple, batch_dims: int) -> str:
        """Whose data steps were not solved."""
        status = self.inner(z, args, batch_dims)
        if status is None:
            return ""
        return (
            f"The data step's own solve, by the operator's prox, did not converge for samples "
            f"{status.nonzero().flatten().tolist()[:5]}: with a step of {float(self.log_step.detach().exp()):.2g} its "
            "system is badly conditioned. Try a shorter step, or the cell Preconditioned, which solves none."
        )

    def begin(self, z0: Any, args: tuple, batch_dims: int) -> Cell:
        """Itself: nothing depends on the operator's norm."""
        refuse_mapped(self, (z0, args))
        if not hasattr(args[1], "prox"):
            raise TypeError(
                f"{type(self).__name__}: got an operator {type(args[1]).__name__} without prox(z, y, step), expected "
                "one that solves with its Gram operator; try Gradient or Proximal, or a subclass of imaging.Operator"
            )
        return self


class HalfQuadratic(_Splitting):
    r"""Half-quadratic splitting: $z \mapsto D(\mathrm{prox}_{\alpha f}(z))$.

    Here $f(x) = |A x - y|^2 / 2 + \epsilon |x|^2 / 2$. As `Proximal` with a data step that inverts, $x = (A^* A +
    \epsilon + 1 / \alpha)^{-1} (A^* y + z / \alpha)$: in closed form for many operators, by CG for others. It does not
    depend on the operator's norm, and what the measurement determines well is there after one step. With a nonexpansive
    $D$ and `eps` the map contracts by $1 / (1 + \alpha \epsilon)$.

    Source: D. Geman, C. Yang, IEEE Trans. Image Process. 4 (1995) 932; as a deep equilibrium: deepinv's DEQ with HQS.

    Args:
        prior: by its denoiser.
        step: $\alpha$ to start with, > 0, learned: the larger, the closer to the measurement.
        eps: see `Cell`.

    Raises:
        TypeError: the prior is none; when called, an operator without `prox`.
        ValueError: an option is impossible.
    """

    def forward(self, z: Tensor, y: Tensor, op: Any) -> Tensor:
        """The data step, and the denoiser."""
        return self.prior(self.proximal(z, y, op))

    @torch.no_grad()
    def contraction(self, op: Any, like: Any) -> Tensor | float:
        """That of the data step times the denoiser's expansion; see `Cell`."""
        return self.prior.expansion() / (1 + self.log_step.exp() * self.eps)


class ADMM(_Splitting):
    r"""DE-ADMM on the pair $(x, u)$ of the image and the scaled multiplier.

    $$ z = D(x + u), \quad u \leftarrow u + x - z, \quad x \leftarrow \mathrm{prox}_{\alpha f}(z - u) . $$

    The order matters: with $u$ updated after $x$ by the old $u$ it is another iteration, which need not converge. For
    a firmly nonexpansive $D$ (`Ridge`, `averaged(net, 0.5)`) it does, for every step.

    Source: as `Gradient`, section III-C; S. Boyd and others, Foundations and Trends in Machine Learning 3 (2011) 1.

    Args:
        prior: by its denoiser.
        step: see `HalfQuadratic`.
        eps: see `Cell`.

    Raises:
        TypeError: see `HalfQuadratic`.
        ValueError: see `HalfQuadratic`.
    """

    def forward(self, z: tuple[Tensor, Tensor], y: Tensor, op: Any) -> tuple[Tensor, Tensor]:
        """The denoiser, the multiplier, and the data step."""
        v, u = self._moved(z)
        return self.proximal(v, y, op), u

    def before(self, z: tuple[Tensor, Tensor]) -> Tensor:
        """The denoised image, less the new multiplier."""
        return self._moved(z)[0]

    def _moved(self, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """That, and the new multiplier."""
        v = z[0] + z[1]
        denoised = self.prior(v)
        return denoised - (v - denoised), v - denoised

    def start(self, y: Tensor, op: Any) -> tuple[Tensor, Tensor]:
        """The adjoint image, and no multiplier."""
        x = super().start(y, op)
        return x, torch.zeros_like(x)

    def output(self, z: tuple[Tensor, Tensor], y: Tensor, op: Any) -> Tensor:
        """The image of the pair."""
        return z[0]


class DouglasRachford(_Splitting):
    r"""Douglas-Rachford splitting: $v \mapsto v + D(2 x - v) - x$ with $x = \mathrm{prox}_{\alpha f}(v)$, the image.

    The fixed points are those of `ADMM`, with one auxiliary state in place of a pair. With a firmly nonexpansive $D$,
    `eps`, and hence $\epsilon \le \nabla^2 f \le \|A\|^2 + \epsilon$, it contracts by $(1 + \delta) / 2$,

    $$\delta = \max\left(\frac{1 - \alpha \epsilon}{1 + \alpha \epsilon},
    \frac{\alpha (\|A\|^2 + \epsilon) - 1}{\alpha (\|A\|^2 + \epsilon) + 1}\right)$$

    (P. Giselsson, S. Boyd, IEEE Trans. Autom. Control 62 (2017) 532, theorem 1).

    Source: P.-L. Lions, B. Mercier, SIAM J. Numer. Anal. 16 (1979) 964.

    Args:
        prior: by its denoiser.
        step: see `HalfQuadratic`.
        eps: see `Cell`.

    Raises:
        TypeError: see `HalfQuadratic`.
        ValueError: see `HalfQuadratic`.
    """

    def forward(self, z: Tensor, y: Tensor, op: Any) -> Tensor:
        """The data step, and the denoiser at its reflection."""
        x = self.output(z, y, op)
        return z + self.prior(2 * x - z) - x

    def output(self, z: Tensor, y: Tensor, op: Any) -> Tensor:
        """The image: the data step at the state."""
        return self.proximal(z, y, op)

    @torch.no_grad()
    def contraction(self, op: Any, like: Any) -> Tensor | float:
        """See the class; nothing is known without a firmly nonexpansive denoiser."""
        if not self.prior.is_firm():
            return math.inf
        step = self.log_step.exp()
        least, most = step * self.eps, step * (self.square(op, like) + self.eps)
        return 0.5 + 0.5 * torch.maximum((1 - least) / (1 + least), (most - 1) / (most + 1))

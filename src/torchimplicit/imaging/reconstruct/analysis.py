"""Priors of few coefficients: a linear map of the image, and what the sizes of its values cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchimplicit.core.options import is_number
from torchimplicit.imaging.baselines.frame import Frame, shrunk, size_of
from torchimplicit.imaging.positive import logarithm
from torchimplicit.imaging.reconstruct.prior import ConvexPrior


class Analysis(ConvexPrior):
    r"""A convex regulariser of few coefficients: $R(x) = \lambda \sum_i w_i\, h(|(K x)_i|)$ with a linear map $K$.

    With `width=0` the penalty is the size itself, $h(t) = t$: total variation for `Differences()`, $\ell_1$ of
    `Wavelets` or of learned `Filters`. It has no slope at zero; `PrimalDual` needs none. With a width $\delta$ it is
    Huber's, a parabola up to $\delta$, which every cell takes.

    The conjugate of the penalty, $g(c) = \sum_i \lambda_i h(|c_i|)$, is $g^*(p) = \sum_i \delta |p_i|^2 / (2
    \lambda_i)$ where all $|p_i| \le \lambda_i$, and infinite elsewhere.

    Source: M. Elad, P. Milanfar, R. Rubinstein, Inverse Problems 23 (2007) 947, for analysis priors; P. Huber, Ann.
    Math. Statist. 35 (1964) 73, for the width.

    Args:
        frame: $K$, such as `Differences()`, `Wavelets(4, 3)` or `Filters()`; for complex images $|\cdot|$ is the
            magnitude.
        weight: $\lambda$ to start with, > 0, learned; it scales as the image does.
        width: $\delta \ge 0$, in units of the image.

    Raises:
        TypeError: no frame.
        ValueError: an option is impossible; for the denoiser and the slope: a width of zero.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import Analysis, Differences
        >>> step = torch.zeros(1, 4, 4)
        >>> step[:, :, 2:] = 1
        >>> Analysis(Differences(), weight=0.5).energy(step)
        tensor([2.], grad_fn=<SumBackward1>)
    """

    def __init__(self, frame: Frame, *, weight: float, width: float = 0.0):
        super().__init__()
        if not all(callable(getattr(frame, name, None)) for name in ("analyse", "adjoint", "weights")):
            raise TypeError(
                f"Analysis(frame=...): got a {type(frame).__name__}, expected a linear map with analyse and adjoint; "
                "try Differences()"
            )
        if not (is_number(width) and 0 <= width < math.inf):
            raise ValueError(f"Analysis(width={width!r}): expected a finite number >= 0")
        self.frame, self.width = frame, width
        self.log_weight = logarithm(self, "weight", weight)

    def energy(self, x: Tensor) -> Tensor:
        """The regulariser of images `(B, ..., H, W)`, `(B,)`."""
        return self.penalty(self.frame.analyse(x))

    def penalty(self, c: Tensor) -> Tensor:
        """$g$ of coefficients `(B, ..., bands)`, `(B,)`."""
        size = size_of(self.frame, c)
        if self.width:
            size = torch.where(size < self.width, size.square() / (2 * self.width), size - self.width / 2)
        return (self.levels(c) * size).flatten(1).sum(1)

    def conjugate(self, p: Tensor) -> Tensor:
        """$g^*$ of coefficients that are nowhere larger than their level, `(B,)`."""
        level = self.levels(p)
        share = size_of(self.frame, p).square() / level.clamp_min(torch.finfo(level.dtype).tiny)
        return (0.5 * self.width * share).flatten(1).sum(1)

    def feasible(self, p: Tensor) -> Tensor:
        """The nearest coefficients that are nowhere larger than their level."""
        size = size_of(self.frame, p)
        share = (self.levels(p) / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1)
        return p * (share.unsqueeze(-1) if self.frame.joint else share)

    def misfit(self, x: Tensor, p: Tensor) -> Tensor:
        r"""$g(K x) + g^*(p) - \langle K x, p \rangle$, zero where $p$ is a slope of $g$ at $K x$, else positive.

        In double precision: it is a small difference.

        Args:
            x: images, `(B, ...)`.
            p: coefficients that are nowhere larger than their level.
        """
        x, p = (each.to(torch.promote_types(each.dtype, torch.float64)) for each in (x, p))
        c = self.frame.analyse(x)
        return (self.penalty(c) + self.conjugate(p) - (c.conj() * p).real.flatten(1).sum(1)).clamp_min(0)

    def dual(self, v: Tensor, step: Tensor, scale: Tensor) -> Tensor:
        r"""The proximal point of $\sigma g^*$ at $v / s$, times $s$.

        Args:
            v: coefficients, `(B, ..., bands)`.
            step: $\sigma > 0$, of samples, `(B, 1, ...)` as images have it, or one.
            scale: $s > 0$, likewise.
        """
        if self.width:
            level = self.levels(v)
            v = v * (level / (level + step.unsqueeze(-1) * self.width))
        return v - shrunk(self.frame, v, scale * self.log_weight.exp())

    def levels(self, like: Tensor) -> Tensor:
        r"""$\lambda_i$: what the size of a coefficient costs at most, `()` or `(bands,)`."""
        return self.log_weight.exp().to(like.real) * self.frame.weights(like)

    def slope(self, x: Tensor) -> Tensor:
        """See `Prior`; of a width alone."""
        self._require_width()
        c = self.frame.analyse(x)
        size = size_of(self.frame, c)
        gain = self.levels(c) / size.clamp_min(self.width)
        return self.frame.adjoint(c * (gain.unsqueeze(-1) if self.frame.joint else gain))

    def lipschitz(self) -> Tensor | float:
        """The largest level times $|K|^2$, by the width; infinite without one."""
        if not self.width:
            return math.inf
        return self.levels(self.log_weight).amax() * self.frame.bound / self.width

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"width={self.width:g}"

    def _require_width(self) -> None:
        if not self.width:
            raise ValueError(
                "Analysis(width=0): the penalty has no slope at zero and no denoiser in closed form; expected the cell "
                "PrimalDual, or a width > 0"
            )

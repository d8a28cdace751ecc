"""A convex regulariser that is learned: ridge functions of small filters."""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.imaging.reconstruct.filters import centred, planes, supremum, transposed
from torchimplicit.imaging.reconstruct.prior import ConvexPrior

FINE = 1e-6  # part of its saturation up to which a magnitude is rounded off
REST = 0.003  # of the differences' size: the other filters of a smoothed total variation


class Ridge(ConvexPrior):
    r"""A learned convex regulariser: $R(x) = \sum_c \sum_i \tau_c^2 \log\cosh((w_c * x)_i / \tau_c)$.

    It has 1,200 parameters. Its slope $\sum_c w_c^\top \tau_c \tanh(w_c * x / \tau_c)$ is one convolution, a saturating
    function, and the transposed convolution. It is the gradient of a convex function whatever the parameters are, and
    its Lipschitz constant is at most $\|W\|^2 = \max_\omega \sum_c |\hat w_c(\omega)|^2$, read off the filters' symbol.
    So with a linear measurement everything that is asked of an equilibrium can be proved: a minimum of a convex energy,
    steps that cannot be too long, and, with `eps` in the cell, one solution and a bound of the distance to it.

    Complex images have the potential of the magnitude $|w_c * x|$: $R(e^{i \varphi} x) = R(x)$. The filters have no
    mean and look at every channel by itself; beyond its border an image counts as zero. `prior(v)` is $v - \nabla R(v)
    / L$, a step down the regulariser and, as the nonexpansive gradient of a convex function, a proximal map.

    Not for what the neighbourhood of a few taps does not tell, textures and shapes: there a network knows more, and
    proves less.

    Source: A. Goujon, S. Neumayer, P. Bohra, S. Ducotterd, M. Unser, A neural-network-based convex regularizer for
    inverse problems, IEEE Trans. Comput. Imaging 9 (2023) 781, arXiv 2211.12461, with tanh in place of splines.

    Args:
        filters: how many.
        taps: of a filter in each direction, odd.
        curvature: Lipschitz constant of the slope to start with, about.
        saturation: response $\tau$ at which a penalty becomes linear, to start with, in units of the image.
        seed: of the random filters to start with.

    Raises:
        ValueError: an option is impossible; for `slope`: images without a height and a width.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import Ridge
        >>> prior = Ridge(filters=8, taps=3)
        >>> x = torch.randn(2, 1, 16, 16)
        >>> prior.slope(x).shape, bool(prior.energy(prior(x)).sum() < prior.energy(x).sum())
        (torch.Size([2, 1, 16, 16]), True)
    """

    def __init__(
        self, filters: int = 24, taps: int = 7, curvature: float = 0.4, saturation: float = 0.03, *, seed: int = 0
    ):
        super().__init__()
        self.filters, self.taps, self.curvature, self.saturation = filters, taps, curvature, saturation
        require_count(self, "filters", "taps")
        require(self, "taps", taps % 2 == 1 and taps > 1, "an odd integer >= 3")
        for name in ("curvature", "saturation"):
            value = getattr(self, name)
            require(self, name, is_number(value) and 0 < value < math.inf, "a finite number > 0")
        weight = torch.randn(filters, 1, taps, taps, generator=torch.Generator().manual_seed(seed), device="cpu")
        weight = weight.to(torch.get_default_device())
        size = math.sqrt(curvature / filters)
        self.weight = nn.Parameter(weight / weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * size)
        self.log_saturation = nn.Parameter(torch.full((filters,), math.log(saturation)))

    @classmethod
    def total_variation(
        cls, strength: float, width: float = 5e-3, *, filters: int = 16, taps: int = 5, seed: int = 0
    ) -> Self:
        r"""Starts at a smoothed total variation, horizontal and vertical differences apart, from which to learn.

        $\lambda \sum_i h(d_i)$ of differences $d$ of neighbours, with $h(d) \approx |d|$ beyond `width` and a parabola
        within; the other filters start near zero. Where random filters start below a tuned classical method, this one
        starts at it: of a brain at fourfold undersampling 1.9 dB above CG-SENSE before any training.

        Args:
            strength: $\lambda$, > 0, in units of the image.
            width: difference at which the penalty becomes linear, > 0, in units of the image.
            filters: how many, >= 2.
            taps: of a filter in each direction, odd.
            seed: of the other filters.
        """
        for name, value in (("strength", strength), ("width", width)):
            if not (is_number(value) and 0 < value < math.inf):
                raise ValueError(f"Ridge.total_variation({name}={value!r}): expected a finite number > 0")
        require_count("Ridge.total_variation", least=2, filters=filters)
        gain, saturation = math.sqrt(strength / width), math.sqrt(strength * width)
        prior = cls(filters, taps, filters * (REST * gain) ** 2, saturation, seed=seed)
        middle = taps // 2
        with torch.no_grad():
            prior.weight[:2] = 0
            prior.weight[:2, 0, middle, middle] = -gain
            prior.weight[0, 0, middle, middle + 1] = prior.weight[1, 0, middle + 1, middle] = gain
        return prior

    def kernel(self) -> Tensor:
        """The filters, without their means, `(filters, 1, taps, taps)`."""
        return centred(self.weight)

    def slope(self, x: Tensor) -> Tensor:
        """The gradient of the regulariser at images `(B, ..., H, W)`, real or complex; see the class."""
        kernel, images = self.kernel(), planes("Ridge", x)
        response = F.conv2d(images, kernel, padding=self.taps // 2)
        saturation = self.log_saturation.exp().reshape(-1, 1, 1)
        if x.is_complex():
            real, imaginary = response.chunk(2)
            size = _size(real, imaginary, saturation)
            gain = torch.tanh(size) / size
            pulled = transposed(torch.cat((real * gain, imaginary * gain)), kernel)
            return torch.complex(*pulled.chunk(2)).reshape(x.shape)
        return transposed(saturation * torch.tanh(response / saturation), kernel).reshape(x.shape)

    def energy(self, x: Tensor) -> Tensor:
        """The regulariser of images `(B, ..., H, W)`, `(B,)`."""
        saturation = self.log_saturation.exp().reshape(-1, 1, 1)
        response = F.conv2d(planes("Ridge", x), self.kernel(), padding=self.taps // 2)
        real, imaginary = response.chunk(2) if x.is_complex() else (response, None)
        size = (real / saturation).abs() if imaginary is None else _size(real, imaginary, saturation)
        potential = size + F.softplus(-2 * size) - math.log(2)  # log cosh
        return (saturation.square() * potential).reshape(len(x), -1).sum(1)

    def lipschitz(self) -> Tensor:
        r"""An upper bound of $\|W\|^2$, hence of the slope's Lipschitz constant, on images of every size."""
        return supremum(self.kernel())

    def spectrum(self, like: Tensor) -> Tensor:
        r"""See `Prior.spectrum`: $\sum_c |\hat w_c|^2$, of images that go on periodically beyond their border."""
        kernel = self.kernel()[:, 0].to(like.real)
        height, width = like.shape[-2:]
        if min(height, width) < self.taps:  # the filters wrap around more than once
            return self.lipschitz().to(like.real)
        return torch.fft.fft2(kernel, s=(height, width)).abs().square().sum(0)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"filters={self.filters}, taps={self.taps}"


def _size(real: Tensor, imaginary: Tensor, saturation: Tensor) -> Tensor:
    """Magnitudes in units of the saturation, rounded off at zero, where a magnitude has no derivative."""
    return ((real.square() + imaginary.square()) / saturation.square() + FINE**2).sqrt()

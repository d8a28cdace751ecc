"""A convex regulariser with a few numbers to learn: how sparse an image is in differences and in wavelets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.imaging.baselines.frame import Differences, Frame, Wavelets
from torchimplicit.imaging.reconstruct.prior import ConvexPrior

DIFFERENCES = Differences()
FINE = 1e-6  # part of its width up to which a magnitude is rounded off


class Sparsity(ConvexPrior):
    r"""Smoothed total variation and wavelets: $R(x) = \sum_b \lambda_b \tau_b \sum_i \log\cosh(|c_b|_i / \tau_b)$.

    $c_b$ are the differences of neighbours, whose two directions count by their length, and the bands of Daubechies'
    wavelets without decimation. What each band counts, $\lambda_b$, and the size $\tau_b$ at which its penalty becomes
    linear are learned: 20 numbers for three levels, so few that a single undersampled scan determines them, where a
    thousand taps of a `Ridge` follow the noise of its lines. Convex whatever they are, and its Lipschitz constant is
    at most $8 \lambda_0 / \tau_0 + \max_b \lambda_b / \tau_b$, as wavelets are a Parseval frame.

    Complex images have the magnitudes of complex coefficients. Wavelets go around the edges. The slope of a level costs
    as many additions as its filters have taps, in both directions. `prior(v)` is $v - \nabla R(v) / L$.

    Not for slabs narrower than the filters of the last level, which are `2 * moments * 2**(levels - 1)` long.

    Source: M. Lustig, D. Donoho, J. Pauly, Magn. Reson. Med. 58 (2007) 1182, for the sum of both; E. Haber, L. Horesh,
    L. Tenorio, Inverse Problems 26 (2010) 025002, for learned weights.

    Args:
        differences: $\lambda$ of the differences to start with, in units of the image.
        wavelets: $\lambda$ of the wavelets, halved with every level, as in `imaging.wavelet`.
        width: $\tau$ of all to start with, in units of the image.
        moments: of the wavelets that vanish, 1 to 10.
        levels: of the wavelets.

    Raises:
        ValueError: an option is impossible; for `slope`: images without a height and a width.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import Sparsity
        >>> prior = Sparsity(1e-2, 1e-2, moments=2, levels=2)
        >>> x = torch.randn(2, 1, 16, 16)
        >>> prior.slope(x).shape, bool(prior.energy(prior(x)).sum() < prior.energy(x).sum())
        (torch.Size([2, 1, 16, 16]), True)
    """

    def __init__(
        self,
        differences: float = 5e-5,
        wavelets: float = 5e-5,
        width: float = 5e-3,
        *,
        moments: int = 4,
        levels: int = 3,
    ):
        super().__init__()
        self.differences, self.wavelets, self.width = differences, wavelets, width
        self.moments, self.levels = moments, levels
        for name in ("differences", "wavelets", "width"):
            value = getattr(self, name)
            require(self, name, is_number(value) and 0 < value < math.inf, "a finite number > 0")
        require_count(self, "levels")
        require(self, "moments", moments in range(1, 11), "an integer from 1 to 10")
        self.frame = Wavelets(moments, levels)
        sizes = [wavelets * 2.0**-level for level in range(1, levels + 1) for _ in range(3)]
        self.log_strength = nn.Parameter(torch.tensor([differences, *sizes]).log())
        self.log_width = nn.Parameter(torch.full((len(sizes) + 1,), math.log(width)))

    def slope(self, x: Tensor) -> Tensor:
        """The gradient of the regulariser at images `(B, ..., H, W)`, real or complex; see the class."""
        total = torch.zeros_like(x)
        for frame, strength, width in self._parts(x):
            c = frame.analyse(x)
            size = _sizes(c, frame, width)
            total = total + frame.adjoint(strength / width * torch.tanh(size) / size * c)
        return total

    def energy(self, x: Tensor) -> Tensor:
        """The regulariser of images `(B, ..., H, W)`, `(B,)`."""
        total = x.real.new_zeros(len(x))
        for frame, strength, width in self._parts(x):
            size = _sizes(frame.analyse(x), frame, width)
            potential = strength * width * (size + F.softplus(-2 * size) - math.log(2))  # log cosh
            total = total + potential.reshape(len(x), -1).sum(1)
        return total

    def lipschitz(self) -> Tensor:
        """An upper bound of the slope's Lipschitz constant."""
        steep = (self.log_strength - self.log_width).exp()
        return DIFFERENCES.bound * steep[0] + steep[1:].amax()

    def _parts(self, x: Tensor) -> Iterator[tuple[Frame, Tensor, Tensor]]:
        """Both frames, with strength and width of their bands; what is left at the last level counts nothing."""
        if x.dim() < 3:
            raise ValueError(f"Sparsity: got images of shape {tuple(x.shape)}, expected (B, ..., H, W)")
        strength, width = self.log_strength.exp(), self.log_width.exp()
        yield DIFFERENCES, strength[:1], width[:1]
        yield self.frame, F.pad(strength[1:], (0, 1)), F.pad(width[1:], (0, 1), value=1.0)

    def extra_repr(self) -> str:
        """The wavelets, for `print`."""
        return f"moments={self.moments}, levels={self.levels}"


def _sizes(c: Tensor, frame: Frame, width: Tensor) -> Tensor:
    """Magnitudes of coefficients in units of the width, rounded off at zero, where a magnitude has no derivative."""
    square = (c.real.square() + c.imag.square()) if c.is_complex() else c.square()
    square = square.sum(-1, keepdim=True) if frame.joint else square
    return (square / width.square() + FINE**2).sqrt()

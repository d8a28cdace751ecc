"""Networks as priors: free ones, nonexpansive ones, and gradient steps down a learned energy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.stationary import slope
from torchimplicit.imaging.reconstruct.prior import Prior
from torchimplicit.nn import ContractiveConv2d

NEAR = 0.1  # of the last convolution's weights, where the input is added


class DnCNN(Prior):
    r"""A chain of convolutions that predicts the noise: $D(v) = v + N(v)$, or with `skip=False` $N(v)$ itself.

    Without `bound` nothing is known of it: training drives an equilibrium made of it to the edge of what a solver can
    follow, and beyond. With `bound` the Lipschitz constant of $N$ is at most that, by construction: `skip=False,
    bound=1` is nonexpansive, as `averaged` wants it. The price is expressiveness: a chain of convolutions that are
    each nonexpansive cannot be the identity, and denoises worse (24 against 35 dB measured, where the noise has 32).

    Source: K. Zhang and others, IEEE Trans. Image Process. 26 (2017) 3142, arXiv 1608.03981; no batch normalisation,
    which would couple the samples.

    Args:
        channels: of the images; complex images have two for each, their real and imaginary parts.
        width: channels within.
        depth: convolutions, >= 2.
        bound: of the Lipschitz constant of the chain; None leaves it free.
        skip: whether the chain's output is added to its input.
        smooth: SiLU in place of ReLU, for `GradientStep`; without `bound`, which holds for ReLU alone.

    Raises:
        ValueError: an option is impossible; for the call: images of another number of channels.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import DnCNN
        >>> DnCNN(channels=3, width=8, depth=3)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 24,
        depth: int = 5,
        *,
        bound: float | None = None,
        skip: bool = True,
        smooth: bool = False,
    ):
        super().__init__()
        self.smooth = smooth
        self.channels, self.width, self.depth, self.bound, self.skip = channels, width, depth, bound, skip
        require_count(self, "channels", "width")
        require_count(self, "depth", least=2)
        fine = bound is None or (is_number(bound) and 0 < bound < math.inf)
        require(self, "bound", fine, "None or a finite number > 0")
        require(self, "smooth", not (smooth and bound is not None), "False where there is a bound")
        sizes = [channels, *[width] * (depth - 1), channels]
        self.layers = nn.ModuleList(self._layer(i, o) for i, o in itertools.pairwise(sizes))
        if skip and bound is None:  # near the identity, from which a denoiser is learned in a tenth of the time
            with torch.no_grad():
                self.layers[-1].weight.mul_(NEAR)  # type: ignore[operator,union-attr]

    def _layer(self, inside: int, outside: int) -> nn.Module:
        if self.bound is not None:
            return ContractiveConv2d(inside, outside, 3, padding=1, bound=self.bound ** (1 / self.depth), iterations=4)
        layer = nn.Conv2d(inside, outside, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        return layer

    def forward(self, v: Tensor) -> Tensor:
        """The denoised images, like `v`: real `(B, channels, H, W)`, or complex, with half as many channels or none."""
        x = self._planes(v)
        if x.dim() != 4 or x.shape[1] != self.channels:
            what = f"{'complex' if v.is_complex() else 'real'} images of shape {tuple(v.shape)}"
            raise ValueError(
                f"DnCNN(channels={self.channels}): got {what}, expected (B, {self.channels}, H, W), or complex ones of "
                "half as many channels; try channels=2 for complex (B, H, W)"
            )
        out = x
        for layer in self.layers[:-1]:
            out = F.silu(layer(out)) if self.smooth else F.relu(layer(out))
        out = self.layers[-1](out)
        out = x + out if self.skip else out
        return torch.complex(*out.chunk(2, dim=1)).reshape(v.shape) if v.is_complex() else out

    def _planes(self, v: Tensor) -> Tensor:
        if not v.is_complex():
            return v
        v = v.unsqueeze(1) if v.dim() == 3 else v
        return torch.cat((v.real, v.imag), dim=1)

    def expansion(self) -> float:
        """The bound, and one more where the input is added."""
        return math.inf if self.bound is None else self.bound + self.skip

    def extra_repr(self) -> str:
        """The bound, for `print`."""
        return f"bound={self.bound}, skip={self.skip}"


class Averaged(Prior):
    r"""$D(v) = (1 - \alpha) v + \alpha N(v)$; see `averaged`."""

    def __init__(self, net: Callable, share: float = 0.5):
        super().__init__()
        if not callable(net):
            raise TypeError(f"averaged(net): got a {type(net).__name__}, expected a network or a function")
        self.net, self.share = net, share
        if not (is_number(share) and 0 < share <= 1):
            raise ValueError(f"averaged(share={share!r}): expected a number in (0, 1]")

    def is_firm(self) -> bool:
        """For a nonexpansive network and a share of a half at most."""
        return self.share <= 0.5 and float(self._inner()) <= 1

    def forward(self, v: Tensor) -> Tensor:
        """The mean of the images and the network's, like `v`."""
        return torch.lerp(v, self.net(v), self.share)

    def slope(self, x: Tensor) -> Tensor:
        """The share of `x - net(x)`."""
        return self.share * (x - self.net(x))

    def lipschitz(self) -> Tensor | float:
        """The share of one and the network's constant."""
        return self.share * (1 + self._inner())

    def expansion(self) -> Tensor | float:
        """One for a network that is nonexpansive."""
        return 1 - self.share + self.share * self._inner()

    def _inner(self) -> Tensor | float:
        return self.net.expansion() if isinstance(self.net, Prior) else math.inf


def averaged(net: Callable, share: float = 0.5) -> Averaged:
    r"""The mean of the identity and a network: $D(v) = (1 - \alpha) v + \alpha N(v)$.

    Of a nonexpansive $N$ this is an averaged map, and up to $\alpha = 1/2$ a firmly nonexpansive one, which is what
    proximal maps are: `ADMM`, `HalfQuadratic` and `DouglasRachford` converge with it. A map $v - N(v)$ with a small
    $N$, which looks alike, is not averaged, and ADMM with one did not converge in 284 steps.

    Args:
        net: $N$, a network or a function, `N(v)` like `v`; a `DnCNN(bound=1, skip=False)` is known to be nonexpansive.
        share: $\alpha$, in (0, 1].

    Raises:
        TypeError: `net` is not callable.
        ValueError: the share is impossible.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import DnCNN, averaged
        >>> averaged(DnCNN(bound=1.0, skip=False)).expansion()
        1.0
    """
    return Averaged(net, share)


class GradientStep(Prior):
    r"""A step down a learned energy: $D = I - \nabla R$ with $R(x) = |x - N(x)|^2 / 2$.

    As expressive as the network $N$, and a gradient for all parameters: the energy of a plug-and-play method exists and
    can be followed, though it need not be convex. Each slope takes the network forward and back.

    Source: S. Hurault, A. Leclaire, N. Papadakis, Gradient step denoiser for convergent plug-and-play, ICLR 2022, arXiv
    2110.03220.

    Args:
        net: $N$, a smooth network, `N(x)` like `x`: with ReLU the slope jumps, and solvers stop at the jumps.

    Raises:
        TypeError: `net` is not callable.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import GradientStep
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 8, 3, padding=1),
        ...     torch.nn.SiLU(),
        ...     torch.nn.Conv2d(8, 1, 3, padding=1),
        ... )
        >>> prior = GradientStep(net)
        >>> x = torch.randn(2, 1, 8, 8)
        >>> bool(torch.allclose(prior(x), x - prior.slope(x)))
        True
    """

    def __init__(self, net: Callable):
        super().__init__()
        if not callable(net):
            raise TypeError(f"GradientStep(net): got a {type(net).__name__}, expected a network or a function")
        self.net = net

    def forward(self, v: Tensor) -> Tensor:
        """The images, a step down the energy, like `v`."""
        return v - self.slope(v)

    @transforms.outside_inference_mode
    def slope(self, x: Tensor) -> Tensor:
        """The gradient of the energy at images, like `x`."""
        wanted = any(parameter.requires_grad for parameter in self.parameters())
        return slope(lambda x: (self.energy(x).sum(), ()), x, wanted)[0]

    def energy(self, x: Tensor) -> Tensor:
        """Half the squared distance between images `(B, ...)` and the network's, `(B,)`."""
        return 0.5 * (x - self.net(x)).abs().square().flatten(1).sum(1)

    def lipschitz(self) -> float:
        """Infinite: no bound is known."""
        return math.inf

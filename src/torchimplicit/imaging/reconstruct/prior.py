"""What is known of images before any is measured: a map that makes an image likelier, and its slope."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Prior(nn.Module):
    r"""Base of the priors: a denoiser $D$, `prior(v)`, and the slope of a regulariser $R$, `prior.slope(x)`.

    A subclass gives `forward`; the slope is then $x - D(x)$, what the denoiser takes away (regularisation by
    denoising). Where $R$ is the primary thing it overrides both. What a subclass knows of itself it says by the
    attributes and the methods below: cells choose steps by that, and certificates are proved by it.

    Attributes:
        convex: whether the slope is the gradient of a convex function, for all parameters.
    """

    convex: bool = False

    def is_firm(self) -> bool:
        """Whether the denoiser is firmly nonexpansive, as proximal maps are: half identity, half nonexpansive."""
        return False

    def slope(self, x: Tensor) -> Tensor:
        r"""$\nabla R(x)$, like `x`."""
        return x - self(x)

    def lipschitz(self) -> Tensor | float:
        """A bound of the slope's Lipschitz constant, with the parameters as they are; infinite where none is known."""
        return 1 + self.expansion()

    def expansion(self) -> Tensor | float:
        """A bound of the denoiser's Lipschitz constant; one or less is nonexpansive; infinite where none is known."""
        return math.inf

    def spectrum(self, like: Tensor) -> Tensor | float:
        """What a cyclic convolution that bounds the slope's derivative multiplies the Fourier transform by.

        Args:
            like: images `(B, ..., H, W)`, of which shape, dtype and device count.

        Returns:
            Real, >= 0, `(H, W)` as `torch.fft.fft2` has it; or one number for all, as here the Lipschitz constant.
        """
        return self.lipschitz()


class ConvexPrior(Prior):
    r"""Base of the priors whose slope is the gradient of a convex function, for all parameters.

    A subclass gives `slope` and `lipschitz`, finite $L$. The denoiser is a step of $1 / L$ down that function: the
    nonexpansive gradient of a convex function again, and so a proximal map (J.-J. Moreau, 1965).
    """

    convex = True

    def forward(self, v: Tensor) -> Tensor:
        """A step down the regulariser as long as is safe, like `v`."""
        return v - self.slope(v) / self.lipschitz()

    def expansion(self) -> float:
        """One: a step of at most twice the inverse Lipschitz constant down a convex function is nonexpansive."""
        return 1.0

    def is_firm(self) -> bool:
        """True: the denoiser is the identity minus a gradient of Lipschitz constant one."""
        return True

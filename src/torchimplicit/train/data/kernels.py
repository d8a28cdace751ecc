"""Kernels of blurs as options of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchimplicit.imaging import gaussian_kernel, motion_kernel


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Base of the kernels: a subclass gives `weights`.

    Args:
        size: pixels a side, odd.
    """

    size: int = 5

    def __post_init__(self) -> None:
        """Refuses what the kernel's own function refuses."""
        self.weights()

    def weights(self) -> Tensor:
        """The weights, `(size, size)`, which sum to one."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method weights(); try GaussianKernel")


@dataclass(frozen=True, kw_only=True)
class GaussianKernel(Kernel):
    """A lens out of focus, about; see `imaging.gaussian_kernel`.

    Args:
        size: pixels a side, odd.
        sigma: standard deviation in pixels; the default is nearly a box.
    """

    sigma: float = 5.0

    def weights(self) -> Tensor:
        """See `Kernel.weights`."""
        return gaussian_kernel(self.size, self.sigma)


@dataclass(frozen=True, kw_only=True)
class MotionKernel(Kernel):
    """A camera that moves; see `imaging.motion_kernel`.

    Args:
        size: pixels a side, odd.
        length: of the way, in pixels.
        angle: of the way, in degrees from the horizontal.
    """

    length: float = 4.0
    angle: float = 0.0

    def weights(self) -> Tensor:
        """See `Kernel.weights`."""
        return motion_kernel(self.size, self.length, self.angle)

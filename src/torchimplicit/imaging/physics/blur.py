r"""Blurs: convolutions of images with a kernel, and what lies beyond their border."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from torchimplicit.core import OnFailure
from torchimplicit.core.options import require
from torchimplicit.imaging.physics.check import (
    alike,
    check_batch,
    check_damping,
    check_finite,
    check_images,
    check_positive,
    is_real_or_complex,
    kind,
)
from torchimplicit.imaging.physics.fourier import transform
from torchimplicit.imaging.physics.operator import SOLVER, Operator
from torchimplicit.linear import CG

Border = Literal["valid", "circular", "reflect"]


class Blur(Operator):
    r"""Convolution of images `(B, channels, H, W)` with a kernel, differentiable in it.

    A point of light becomes the kernel, as `scipy.ndimage.convolve` has it. With the border "valid" nothing is assumed
    of what lies beyond: measurements are smaller, `(B, channels, H - h + 1, W - w + 1)`, the only choice that is right
    for photographs. "circular" takes images for periodic: everything has a closed form by the Fourier transform, and
    real images get artefacts at their borders. "reflect" mirrors them without repeating the edge.

    Args:
        kernel: weights, `(h, w)` of odd sizes; `(channels, h, w)` for kernels of the channels' own, `(B, channels, h,
            w)` or `(B, 1, h, w)` for kernels of the samples' own.
        border: "valid", "circular" or "reflect".

    Examples:
        >>> import torch, torchimplicit as ti
        >>> blur = ti.imaging.Blur(torch.tensor([[0.25, 0.5, 0.25]]))
        >>> blur.A(torch.tensor([[[[0.0, 4.0, 0.0, 8.0]]]]))
        tensor([[[[2., 3.]]]])
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, border: Border = "valid"):
        """Keeps the kernel.

        Raises:
            TypeError: the kernel is not floating or complex.
            ValueError: it has no centre, NaN, or zeros alone; or there is no such border.
        """
        super().__init__()
        if not is_real_or_complex(kernel):
            raise TypeError(f"Blur(kernel=...): got {kind(kernel)}, expected a floating one; try kernel.float()")
        if kernel.dim() not in (2, 3, 4) or not all(size % 2 for size in kernel.shape[-2:]):
            raise ValueError(f"Blur(kernel=...): got shape {tuple(kernel.shape)}, expected (h, w) of odd sizes")
        check_finite("Blur", "kernel", kernel)
        self.border = border
        require(self, "border", border in get_args(Border), "'valid', 'circular' or 'reflect'")
        self.keep("kernel", kernel)
        if kernel.dim() == 4 and len(kernel) > 1:
            self.per_sample = ("kernel",)

    def A(self, x: Tensor) -> Tensor:
        """See `Operator.A`."""
        self._check(x)
        if self.border == "circular":
            return self._filter(x, self._symbol(x))
        return self._convolve(x if self.border == "valid" else self._reflect(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.A_adjoint`."""
        self._check(y, "measurements")
        if self.border == "circular":
            return self._filter(y, self._symbol(y).conj())
        x = self._convolve(y, back=True)
        return x if self.border == "valid" else self._fold(x)

    def gram(self, x: Tensor) -> Tensor:
        """See `Operator.gram`."""
        if self.border != "circular":
            return super().gram(x)
        self._check(x)
        return self._filter(x, self._symbol(x).abs().square())

    def A_dagger(
        self, y: Tensor, damping: float | Tensor = 0.0, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        """See `Operator.A_dagger`; a closed form where the border is circular and there is a damping."""
        if self.border == "circular":
            damping = check_damping("Blur", damping, y)
        if self.border != "circular" or not isinstance(damping, Tensor):
            return super().A_dagger(y, damping, solver, on_failure)
        return self._filter(self.A_adjoint(y), 1 / (self._symbol(y).abs().square() + damping))

    def prox(
        self, z: Tensor, y: Tensor, step: float | Tensor, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        """See `Operator.prox`; a closed form where the border is circular."""
        if self.border != "circular":
            return super().prox(z, y, step, solver, on_failure)
        step = check_positive("Blur", "step", step, z)
        return self._filter(z + step * self.A_adjoint(y), 1 / (1 + step * self._symbol(z).abs().square()))

    def norm(self, like: Tensor | None = None, rtol: float = 1e-3, max_steps: int = 64) -> Tensor:
        """See `Operator.norm`; exact where the border is circular."""
        if self.border != "circular" or like is None:
            return super().norm(like, rtol, max_steps)
        return self._symbol(like).detach().abs().expand(*like.shape[:2], -1, -1).amax((1, 2, 3))

    def guess(self, y: Tensor) -> Tensor:
        """See `Operator.guess`: the blurred images, whose edge goes on beyond their border where that is lost."""
        if self.border != "valid":
            return y
        for axis, size in zip((-2, -1), self.kernel.shape[-2:], strict=True):  # `pad` does it to real images alone
            place = torch.arange(-(size // 2), y.shape[axis] + size // 2, device=y.device)
            y = y.index_select(axis, place.clamp(0, y.shape[axis] - 1))
        return y

    def norm_bound(self, like: Tensor | None = None) -> Tensor:
        """See `Operator.norm_bound`; by Young's inequality where nothing beyond the border counts."""
        if self.border != "valid" or like is None:
            return super().norm_bound(like)
        return self._like(like).detach().abs().sum((2, 3)).amax(1)

    def spectrum(self, like: Tensor) -> Tensor:
        """See `Operator.spectrum`: of the circular blur, of which a valid one is a part."""
        return self._symbol(like).detach().abs().square()

    def _check(self, x: Tensor, name: str = "images") -> None:
        own = self.kernel.shape[-3] if self.kernel.dim() > 2 else 1
        check_images("Blur", x, "channels" if own == 1 else own, "H", "W", name=name)
        if self.kernel.dim() == 4:
            check_batch("Blur", x, len(self.kernel), "kernels")
        height, width = self.kernel.shape[-2:]
        least = {"valid": (height, width), "circular": (height, width), "reflect": (height // 2 + 1, width // 2 + 1)}
        if name == "images" and any(a < b for a, b in zip(x.shape[-2:], least[self.border], strict=True)):
            raise ValueError(
                f"Blur: got images {tuple(x.shape)}, expected (B, channels, H, W) of {least[self.border]} pixels or "
                f"more for a kernel ({height}, {width})"
            )

    def _like(self, x: Tensor) -> Tensor:
        """The kernel `(1 or B, 1 or channels, h, w)` in the precision of images."""
        return alike(self.kernel[(None,) * (4 - self.kernel.dim())], x)

    def _convolve(self, x: Tensor, back: bool = False) -> Tensor:
        """The convolution with the kernel where all of it lies within, or its adjoint."""
        kernel = self._like(x)
        dtype = torch.promote_types(x.dtype, kernel.dtype)
        x, kernel = x.to(dtype), kernel.to(dtype).flip(-2, -1)
        height, width = kernel.shape[-2:]
        if not len(x):  # no groups are a convolution that torch refuses
            more = 1 if back else -1
            return pad(x, (0, more * (width - 1), 0, more * (height - 1)))
        if kernel.shape[:2] == (1, 1):
            rows, weight, groups = x.reshape(-1, 1, *x.shape[2:]), kernel, 1
        else:
            weight = kernel.expand(*x.shape[:2], height, width).reshape(-1, 1, height, width)
            rows, groups = x.reshape(1, -1, *x.shape[2:]), len(weight)
        if back:  # on CPUs `conv_transpose2d` takes eight times as long
            weight = weight.conj().flip(-2, -1)
        found = conv2d(rows, weight, padding=(height - 1, width - 1) if back else 0, groups=groups)
        return found.reshape(*x.shape[:2], *found.shape[2:])

    def _symbol(self, x: Tensor) -> Tensor:
        """The kernel's Fourier transform, by which a circular blur multiplies, `(1 or B, 1 or channels, H, W)`."""
        kernel = self._like(x)
        height, width = kernel.shape[-2:]
        padding = (0, x.shape[-1] - width, 0, x.shape[-2] - height)
        placed = pad(kernel, padding).roll((-(height // 2), -(width // 2)), (-2, -1))
        return transform(placed)

    def _filter(self, x: Tensor, symbol: Tensor) -> Tensor:
        found = transform(symbol * transform(x), inverse=True)
        return found if x.is_complex() or self.kernel.is_complex() else found.real

    def _reflected(self, size: int, border: int, device: torch.device) -> Tensor:
        """Which pixel of an axis is seen at each place of the mirrored one, `(size + 2 border,)`."""
        place = torch.arange(-border, size + border, device=device).abs()
        return torch.where(place < size, place, 2 * (size - 1) - place)

    def _reflect(self, x: Tensor) -> Tensor:
        for axis, size in zip((-2, -1), self.kernel.shape[-2:], strict=True):
            x = x.index_select(axis, self._reflected(x.shape[axis], size // 2, x.device))
        return x

    def _fold(self, x: Tensor) -> Tensor:
        """The adjoint of `_reflect`: what lies beyond the border is added where it came from."""
        for axis, size in zip((-2, -1), self.kernel.shape[-2:], strict=True):
            shape = list(x.shape)
            shape[axis] -= 2 * (size // 2)
            x = x.new_zeros(shape).index_add(axis, self._reflected(shape[axis], size // 2, x.device), x)
        return x

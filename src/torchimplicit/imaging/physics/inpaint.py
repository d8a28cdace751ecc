"""Images of which parts are seen, or colours or pixels together: operators whose rows are orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from torchimplicit.core import OnFailure
from torchimplicit.core.options import require_count
from torchimplicit.imaging.physics.check import check_damping, check_images, check_mask, check_positive
from torchimplicit.imaging.physics.operator import SOLVER, Operator
from torchimplicit.linear import CG


class _Coisometry(Operator):
    r"""An operator with $A A^H = c I$: whatever is asked of it has a closed form."""

    coisometry: float

    def A_dagger(
        self, y: Tensor, damping: float | Tensor = 0.0, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        """See `Operator.A_dagger`; a closed form."""
        x = self.A_adjoint(y)
        return x / (self.coisometry + check_damping(type(self).__name__, damping, x))

    def prox(
        self, z: Tensor, y: Tensor, step: float | Tensor, solver: CG = SOLVER, on_failure: OnFailure = "warn"
    ) -> Tensor:
        """See `Operator.prox`; a closed form."""
        step = check_positive(type(self).__name__, "step", step, z)
        right = z + step * self.A_adjoint(y)
        return right - step / (1 + step * self.coisometry) * self.gram(right)

    def norm(self, like: Tensor | None = None, rtol: float = 1e-3, max_steps: int = 64) -> Tensor:
        """See `Operator.norm`; exact."""
        ones = torch.ones(1) if like is None else torch.ones_like(like.real.flatten(1)[:, 0])
        return self.coisometry**0.5 * ones


class Inpainting(_Coisometry):
    """The entries that are seen, `(B, m)`, in their order.

    Args:
        mask: which those are, bool, of the shape of one image or one that broadcasts to it.
        shape: of one image; None for that of the mask.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> upper = ti.imaging.Inpainting(torch.tensor([[True, True], [False, False]]))
        >>> y = upper.A(torch.arange(4.0).view(1, 2, 2))
        >>> y, upper.A_adjoint(y)
        (tensor([[0., 1.]]), tensor([[[0., 1.],
                 [0., 0.]]]))
    """

    mask: Tensor
    index: Tensor
    coisometry = 1.0

    def __init__(self, mask: Tensor, shape: Sequence[int] | None = None):
        """Keeps the mask.

        Raises:
            TypeError: it is not bool.
            ValueError: it does not broadcast to the shape, or shows nothing.
        """
        super().__init__()
        check_mask("Inpainting", mask, batched=False)
        shape = torch.Size(mask.shape if shape is None else shape)
        try:
            mask = mask.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"Inpainting(mask=...): got shape {tuple(mask.shape)}, expected that of an image, {tuple(shape)}"
            ) from None
        self.register_buffer("mask", mask.contiguous(), persistent=False)
        self.register_buffer("index", mask.flatten().nonzero().squeeze(1), persistent=False)

    def A(self, x: Tensor) -> Tensor:
        """The entries that are seen, `(B, m)`."""
        check_images("Inpainting", x, *self.mask.shape)
        return x.flatten(1).index_select(1, self.index)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Images that are zero where nothing is seen."""
        check_images("Inpainting", y, len(self.index), name="measurements")
        return y.new_zeros(len(y), prod(self.mask.shape)).index_copy(1, self.index, y).view(-1, *self.mask.shape)

    def gram(self, x: Tensor) -> Tensor:
        """See `Operator.gram`."""
        check_images("Inpainting", x, *self.mask.shape)
        return x * self.mask


class Greyscale(_Coisometry):
    """Colour to grey, `(B, C, ...)` to `(B, 1, ...)`: a weighted sum of the channels.

    Args:
        weights: of the channels, constants; those of ITU-R BT.601 by default.

    Raises:
        TypeError: weights that require a gradient.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> ti.imaging.Greyscale((0.5, 0.25, 0.25)).A(torch.tensor([[4.0, 2.0, 2.0]]))
        tensor([[3.]])
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float] = (0.299, 0.587, 0.114)):
        super().__init__()
        if isinstance(weights, Tensor) and weights.requires_grad:
            raise TypeError(
                "Greyscale(weights): got a tensor that requires a gradient, expected numbers, for they are constants; "
                "try weights.tolist()"
            )
        self.register_buffer("weights", torch.tensor(tuple(weights), dtype=torch.float64), persistent=False)
        self.coisometry = float(self.weights.square().sum())

    def A(self, x: Tensor) -> Tensor:
        """The grey images."""
        self._check(x, "images", len(self.weights))
        return (x * self._beside(x)).sum(1, keepdim=True)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Grey in all channels, by their weights."""
        self._check(y, "measurements", 1)
        return y * self._beside(y)

    def _check(self, x: Tensor, name: str, channels: int) -> None:
        check_images("Greyscale", x, "...", name=name)
        if x.dim() < 2 or x.shape[1] != channels:
            raise ValueError(f"Greyscale: got {name} {tuple(x.shape)}, expected (B, {channels}, ...)")

    def _beside(self, x: Tensor) -> Tensor:
        return self.weights.to(x.real).view(-1, *(1,) * (x.dim() - 2))


class Downsample(_Coisometry):
    """Means of blocks of pixels, `(B, ..., H, W)` to `(B, ..., H / factor, W / factor)`.

    What a coarser sensor sees. `Inpainting(grid) @ Blur(kernel)` takes every `factor`-th pixel behind another filter.

    Args:
        factor: pixels a side of a block.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> ti.imaging.Downsample(2).A(torch.arange(8.0).view(1, 2, 4))
        tensor([[[2.5000, 4.5000]]])
    """

    def __init__(self, factor: int):
        super().__init__()
        require_count("Downsample", factor=factor)
        self.factor, self.coisometry = factor, 1 / factor**2

    def A(self, x: Tensor) -> Tensor:
        """The means of blocks."""
        check_images("Downsample", x, "...", "H", "W")
        if any(size % self.factor for size in x.shape[-2:]):
            raise ValueError(
                f"Downsample: got images {tuple(x.shape)}, expected sides that are multiples of {self.factor}; try to "
                "crop them"
            )
        return x.unflatten(-1, (-1, self.factor)).unflatten(-3, (-1, self.factor)).mean((-3, -1))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Every pixel spread evenly over its block."""
        check_images("Downsample", y, "...", "H", "W", name="measurements")
        spread = y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return spread * self.coisometry

"""What is measured of an image: linear operators and their adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchimplicit.core.independence import noise


@runtime_checkable
class Measuring(Protocol):
    """A linear operator of images: `A(x)` and `A.adjoint(y)`, for every sample by itself; anything that has both.

    Where $A A^T$ is a multiple of the identity, an attribute `gram` says which; None where it is not, or unknown.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """`A x`, `(B, ...)`, of images `(B, *shape)`."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """`A^T y`, `(B, *shape)`."""
        ...


class Inpainting(nn.Module):
    """The entries that are seen, `(B, m)`, in their order.

    Args:
        mask: which those are, bool, of the shape of one image or one that broadcasts to it.
        shape: of one image; None for that of the mask.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> upper = ti.nn.Inpainting(torch.tensor([[True, True], [False, False]]))
        >>> y = upper(torch.arange(4.0).view(1, 2, 2))
        >>> y, upper.adjoint(y)
        (tensor([[0., 1.]]), tensor([[[0., 1.],
                 [0., 0.]]]))
    """

    mask: Tensor
    gram = 1.0

    def __init__(self, mask: Tensor, shape: Sequence[int] | None = None):
        """Keeps the mask.

        Raises:
            TypeError: it is not bool.
            ValueError: it does not broadcast to the shape, or shows nothing.
        """
        super().__init__()
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"Inpainting(mask=...): got {got}, expected a tensor of torch.bool; try mask > 0")
        shape = torch.Size(mask.shape if shape is None else shape)
        try:
            mask = mask.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"Inpainting(mask=...): got shape {tuple(mask.shape)}, expected that of an image, {tuple(shape)}"
            ) from None
        if not bool(mask.any()):
            raise ValueError("Inpainting(mask=...): got a mask that shows nothing, expected some entries to be seen")
        self.register_buffer("mask", mask.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The entries that are seen, `(B, m)`."""
        if x.shape[1:] != self.mask.shape:
            raise ValueError(
                f"Inpainting: got images {tuple(x.shape)}, expected (B, {', '.join(map(str, self.mask.shape))}), the "
                "shape of the mask"
            )
        return x[:, self.mask]

    def adjoint(self, y: Tensor) -> Tensor:
        """Images that are zero where nothing is seen."""
        x = y.new_zeros(len(y), *self.mask.shape)
        x[:, self.mask] = y
        return x


class Greyscale(nn.Module):
    """Colour to grey, `(B, C, ...)` to `(B, 1, ...)`: a weighted sum of the channels.

    Args:
        weights: of the channels; those of ITU-R BT.601 by default.
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float] = (0.299, 0.587, 0.114)):
        super().__init__()
        self.register_buffer("weights", torch.tensor(tuple(weights), dtype=torch.float64), persistent=False)
        self.gram = float(self.weights.square().sum())

    def forward(self, x: Tensor) -> Tensor:
        """The grey images."""
        if x.dim() < 2 or x.shape[1] != len(self.weights):
            raise ValueError(f"Greyscale: got images {tuple(x.shape)}, expected (B, {len(self.weights)}, ...)")
        return (x * self._beside(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Grey in all channels, by their weights."""
        return y * self._beside(y)

    def _beside(self, x: Tensor) -> Tensor:
        return self.weights.to(x).view(-1, *(1,) * (x.dim() - 2))


class Blur(nn.Module):
    """A blur of each channel of `(B, C, H, W)` by one kernel, with zeros around the image.

    Args:
        kernel: weights, `(h, w)`, of odd sizes.
    """

    kernel: Tensor
    gram = None

    def __init__(self, kernel: Tensor):
        """Keeps the kernel.

        Raises:
            ValueError: it has no centre.
        """
        super().__init__()
        if kernel.dim() != 2 or not all(size % 2 for size in kernel.shape):
            raise ValueError(f"Blur(kernel=...): got shape {tuple(kernel.shape)}, expected (h, w) of odd sizes")
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The blurred images."""
        return self._run(x, self.kernel)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same with the kernel turned by half a circle."""
        return self._run(y, self.kernel.flip(0, 1))

    def _run(self, x: Tensor, kernel: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"Blur: got images {tuple(x.shape)}, expected (B, C, H, W)")
        height, width = kernel.shape
        one = x.reshape(-1, 1, *x.shape[2:])
        padding = (height // 2, width // 2)
        return nn.functional.conv2d(one, kernel.to(x)[None, None], padding=padding).view_as(x)


def check_operator(owner: str, operator: Any, y: Any, like: Tensor) -> Tensor:
    """Measurements of every sample, `(B, ...)`, if they fit the operator and its adjoint is one.

    Args:
        owner: who asks.
        operator: what measures.
        y: measurements, `(B, ...)` or `(1, ...)`.
        like: images, `(B, *shape)`.

    Raises:
        TypeError: no operator, or no floating measurements.
        ValueError: another shape, or an adjoint that is none.
    """
    if not isinstance(operator, Measuring):
        raise TypeError(
            f"{owner}(operator=...): got a {type(operator).__name__}, expected something with A(x) and A.adjoint(y); "
            "try ti.nn.Inpainting(mask)"
        )
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{owner}(y=...): got {got}, expected a floating tensor, such as operator(images)")
    x = noise(like.new_empty(1, *like.shape[1:]))
    seen = operator(x)
    if y.dim() != seen.dim() or y.shape[1:] != seen.shape[1:] or len(y) not in (1, len(like)):
        expected = ", ".join(map(str, seen.shape[1:]))
        raise ValueError(f"{owner}(y=...): got shape {tuple(y.shape)}, expected ({len(like)}, {expected}) or (1, ...)")
    back = noise(seen)
    one, other = (seen * back).sum(), (x * operator.adjoint(back)).sum()
    if abs(one - other) > 1e3 * torch.finfo(x.dtype).eps * (seen.norm() * back.norm()):
        raise ValueError(
            f"{owner}(operator=...): got an adjoint that is none: <A x, y> = {float(one):.4g} and <x, A^T y> = "
            f"{float(other):.4g}; expected the same"
        )
    return y.detach().to(like).expand(len(like), *y.shape[1:])

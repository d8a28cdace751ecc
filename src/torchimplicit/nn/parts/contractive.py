r"""Linear maps that contract by construction: their operator norm is bounded at every moment, not only in the end.

The weight is scaled by $\min(1, b / s)$ with an upper bound $s$ of its operator norm. That comes from Gram iteration
(B. Delattre et al., ICML 2023, arXiv 2305.16173): with $W_{k+1} = W_k^* W_k$ the norm $\sigma(W) =
\sigma(W_k)^{2^{-k}}$ is at most $\|W_k\|_F^{2^{-k}}$, too large by a factor of at most $r^{2^{-k} / 2}$ for rank $r$. A
power iteration, as of a spectral norm, comes from below: right after a step of the optimiser it bounds nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from torchimplicit.core.options import is_number, require, require_count

OVERSAMPLING = 6  # points of the frequency grid for every tap of a kernel


def norm_bound(matrices: Tensor, iterations: int = 6) -> Tensor:
    """An upper bound of the largest singular value, differentiable.

    Args:
        matrices: `(..., m, n)`, real or complex.
        iterations: Gram iterations; the bound is too large by a factor of at most `min(m, n) ** (0.5 ** (k + 1))`.

    Returns:
        The bounds, `(...)`, real.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    wide = matrices.shape[-2] < matrices.shape[-1]
    gram, logarithm = matrices.mH if wide else matrices, 0.0
    for k in range(iterations + 1):
        # Scaled to one in every iteration, for the powers would overflow; the logarithm makes good for the scales.
        size = torch.linalg.matrix_norm(gram, keepdim=True).clamp_min(tiny)
        logarithm = logarithm + 0.5**k * size.log()
        if k < iterations:
            gram = gram / size
            gram = gram.mH @ gram
    return logarithm.exp()[..., 0, 0]  # type: ignore[union-attr]


class _Bounded(nn.Module):
    """Scales a weight such that its operator norm is at most `bound`."""

    def __init__(self, bound: float, iterations: int, groups: int = 1):
        super().__init__()
        self.bound, self.iterations, self.groups = bound, iterations, groups

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # a bound in half precision would be none
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            return (wide * (self.bound / self.size(wide).clamp_min(self.bound))).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight that is assigned; above the bound it comes out scaled."""
        return weight

    def size(self, weight: Tensor) -> Tensor:
        """An upper bound of the operator norm."""
        if weight.dim() == 2:
            return norm_bound(weight, self.iterations)
        # The operator's symbol is a trigonometric polynomial, of degree d = (taps - 1) / 2 in every direction but for a
        # phase. Its supremum is at most its maximum on N points in each, divided by cos(pi d / N) for each (L. Pfister,
        # Y. Bresler, arXiv 1802.04232). An even number of taps makes d a half; in half the angle it is whole, with
        # 2 N points, for the second half repeats the absolute values of the first.
        taps = weight.shape[2:]
        points = [OVERSAMPLING * count for count in taps]
        symbol = torch.fft.rfftn(weight, points, dim=tuple(range(2, weight.dim())))
        symbol = symbol.flatten(2).unflatten(0, (self.groups, -1)).movedim(-1, 0).flatten(0, 1)
        with torch.no_grad():  # where the maximum is; only there is it differentiated
            largest = norm_bound(symbol, self.iterations).argmax(0, keepdim=True)
        slack = math.prod(math.cos(math.pi * (count - 1) / (2 * n)) for count, n in zip(taps, points, strict=True))
        return norm_bound(symbol[largest], self.iterations)[0] / slack


class ContractiveLinear(nn.Linear):
    r"""A linear map with an operator norm of at most `bound`, in the Euclidean norm, by construction.

    With an activation of slope at most one, $z \mapsto \phi(A z + x)$ is then a contraction: there is one fixed point,
    and every solver finds it. The price is expressiveness; a `jacobian_penalty` only leans that way, and a monotone map
    (`ForwardBackward`) has one solution without contracting. The weight is computed once a solve. Weights below the
    bound are left alone. The norm is overestimated by a factor of at most `min(in, out) ** (0.5 ** (iterations + 1))`:
    3 % for 64 features and 6 iterations, met by orthogonal weights; measured on normal ones 0.1 % for 64 features and
    0.6 % for 256. All this holds to the rounding of the weight's dtype.

    Args:
        in_features: see `torch.nn.Linear`.
        out_features: see `torch.nn.Linear`.
        bias: see `torch.nn.Linear`.
        bound: of the operator norm, > 0.
        iterations: of the norm's estimate, see `norm_bound`.
        **options: `device` and `dtype`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> linear = ti.nn.ContractiveLinear(8, 8, bound=0.5)
        >>> _ = torch.nn.init.normal_(linear.parametrizations.weight.original, std=10)
        >>> bool(torch.linalg.matrix_norm(linear.weight, 2) <= 0.5)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        bound: float = 0.9,
        iterations: int = 6,
        **options: Any,
    ):
        """Starts like `torch.nn.Linear`, scaled."""
        super().__init__(in_features, out_features, bias, **options)
        _register(self, bound, iterations)


class _Convolution:
    """What the three convolutions share."""

    def __init__(self, *args: Any, bound: float = 0.9, iterations: int = 6, **options: Any):
        super().__init__(*args, **options)
        _register(self, bound, iterations)


class ContractiveConv1d(_Convolution, nn.Conv1d):
    """A 1d convolution with an operator norm of at most `bound`; see `ContractiveConv2d`."""


class ContractiveConv2d(_Convolution, nn.Conv2d):
    """A convolution with an operator norm of at most `bound`, on images of every size, by construction.

    Zero or circular padding, any stride, dilation and groups. The norm is bounded through the operator's symbol on a
    grid of frequencies; see `ContractiveLinear` for the rest. The overestimate, measured on random kernels and large
    images: 2 to 3 % for 3 x 3 taps and 2 to 32 channels, 4 to 5 % for 5 x 5 and 7 x 7 taps and 8 channels. It costs
    0.02 s a solve for 16 channels and 3 x 3 taps on one CPU core, and 0.3 s for 64: for many channels a spectral norm
    is cheaper, and no guarantee.

    Args:
        *args: see `torch.nn.Conv2d`.
        bound: of the operator norm, > 0.
        iterations: of the norm's estimate, see `norm_bound`.
        **options: see `torch.nn.Conv2d`.

    Raises:
        ValueError: another padding mode: reflected and replicated borders can expand.
    """


class ContractiveConv3d(_Convolution, nn.Conv3d):
    """A 3d convolution with an operator norm of at most `bound`; see `ContractiveConv2d`."""


def _register(module: Any, bound: float, iterations: int) -> None:
    module.bound, module.iterations = bound, iterations
    require(module, "bound", is_number(bound) and 0 < bound < math.inf, "a finite number > 0")
    require_count(module, "iterations")
    mode = getattr(module, "padding_mode", "zeros")
    require(module, "padding_mode", mode in ("zeros", "circular"), "'zeros' or 'circular'")
    if mode == "circular" and not isinstance(module.padding, str):
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        fits = all(2 * p <= r for p, r in zip(module.padding, reach, strict=True))
        # A larger output repeats values of the circle, and repetition expands.
        require(module, "padding", fits, "at most dilation * (kernel_size - 1) / 2 with circular padding")
    register_parametrization(module, "weight", _Bounded(bound, iterations, getattr(module, "groups", 1)))

"""What is known of a Brownian path over a part of an interval, and over two intervals as one.

`W` is the increment over an interval of length `h`; `H` its space-time area, the mean of the path above its chord,
`H = 1/h int_0^h (W_u - u/h W) du`, with the law N(0, h/12), independent of `W`.

Source: Foster, "Numerical approximations for stochastic differential equations", thesis, Oxford 2020, theorem 6.1.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Increment(NamedTuple):
    """A Brownian path over one step.

    Attributes:
        W: the increment, `(B, m)`.
        H: the space-time area, `(B, m)`; None where it was not asked for.
        A: the space-space areas, antisymmetric `(B, m, m)`, see `levy_area`; likewise.
    """

    W: Tensor
    H: Tensor | None
    A: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Increment:
        """What a function makes of all that is there."""
        H, A = (None if part is None else function(part) for part in self[1:])
        return Increment(function(self.W), H, A)

    def split(self) -> list[Increment]:
        """Of the paths over some steps, the first dimension of all that is there, each."""
        return list(map(Increment, *(len(self.W) * (None,) if part is None else part.unbind() for part in self)))

    def stretched(self, root: Tensor) -> Increment:
        """The path of a step whose length is another, by the square of this, `(B,)`; its normals are held."""
        root = root.unsqueeze(1)
        A = None if self.A is None else self.A * root.square().unsqueeze(2)
        return Increment(self.W * root, None if self.H is None else self.H * root, A)


def bridge(whole: Increment, s: Tensor, r: Tensor, x: Tensor, z: Tensor) -> tuple[Increment, Increment]:
    """An interval in two parts: draws from the law of both, given the whole. What they add up to is the whole.

    With `p = s/h`, `q = r/h` and `D^2 = p^3 + q^3 = 1 - 3pq`:

        W1 = p W + 6pq H + sqrt(h p q) D x
        H1 = p^2 H + sqrt(h p q) / D (-p^2/2 x + q/sqrt(12) z)
        H2 = q^2 H + sqrt(h p q) / D (-q^2/2 x - p/sqrt(12) z)

    and without the area `W1 = p W + sqrt(h p q) x`.

    Args:
        whole: the path over an interval of length `h = s + r`.
        s: length of the first part; broadcasts against the increments.
        r: length of the second part.
        x: standard normals.
        z: standard normals; of no matter without the area.
    """
    p, q = s / (s + r), r / (s + r)
    spread, W, H = (s * q).sqrt(), whole.W, whole.H
    if H is None:
        first = _sum((p, W), (spread, x))
        return Increment(first, None), Increment(W - first, None)
    depth = (1 - 3 * p * q).sqrt()
    first = _sum((p, W), (6 * p * q, H), (spread * depth, x))
    half, side = -0.5 * spread / depth, spread / depth / math.sqrt(12)
    return (
        Increment(first, _sum((p**2, H), (half * p**2, x), (side * q, z))),
        Increment(W - first, _sum((q**2, H), (half * q**2, x), (-side * p, z))),
    )


def _sum(first: tuple[Tensor, Tensor], *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Products of coefficients, a few numbers, with tensors, in a pass each."""
    total = first[0] * first[1]
    for coefficient, tensor in terms:
        total = torch.addcmul(total, coefficient, tensor)
    return total


def joined(first: Increment, second: Increment, s: float | Tensor, r: float | Tensor) -> Increment:
    """The path over two neighbouring intervals of lengths `s` and `r` (Chen's relation)."""
    W = first.W + second.W
    if first.H is None or second.H is None:
        return Increment(W, None)
    h, A = s + r, None
    if first.A is not None and second.A is not None:
        turned = 0.5 * first.W.unsqueeze(-1) * second.W.unsqueeze(-2)
        A = first.A + second.A + turned - turned.mT
    return Increment(W, (s * first.H + r * second.H + 0.5 * (r * first.W - s * second.W)) / h, A)


def chosen(samples: Tensor, a: Increment, b: Increment) -> Increment:
    """The first of two paths for some samples, `(..., B)`, and the second one for the others."""
    column = samples.unsqueeze(-1)
    H = None if a.H is None or b.H is None else torch.where(column, a.H, b.H)
    return Increment(torch.where(column, a.W, b.W), H)


def alternating(a: Increment, b: Increment) -> Increment:
    """Steps `(K, B, m)` of two paths in turn, `(2 K, B, m)`."""
    H = None if a.H is None or b.H is None else torch.stack([a.H, b.H], 1).flatten(0, 1)
    return Increment(torch.stack([a.W, b.W], 1).flatten(0, 1), H)


def scaled(W: Tensor, H: Tensor | None, h: float | Tensor, x: Tensor | None = None) -> Increment:
    """Standard normals `(..., B, m)` as the path over steps of length `h`, a number or a tensor that broadcasts.

    With those for pairs, `x`, it has Levy areas, too.
    """
    root = h.sqrt() if isinstance(h, Tensor) else math.sqrt(h)
    path = Increment(W * root, None if H is None else H * (root / math.sqrt(12)))
    return path if x is None else path._replace(A=levy_area(path, h, x))


def levy_area(path: Increment, h: float | Tensor, x: Tensor) -> Tensor:
    """The space-space areas of a step, `A_ij = 1/2 int (W_i dW_j - W_j dW_i)`, in an approximation of Foster's.

        A_ij = H_i W_j - W_i H_j + sqrt(h^2/20 + h/5 (H_i^2 + H_j^2)) x_ij,   i < j

    It has the mean and the variance that the areas have when `W` and `H` are known; so the variance is `h^2/4`. Areas
    that are drawn for one step are not those of its halves together: draw those of the halves, and join them.

    Args:
        path: over the step, with its area, `(..., B, m)`.
        h: length of the step, a number, or `(B, 1)`.
        x: standard normals, `(..., B, m (m - 1) / 2)`, for the pairs (0, 1), (0, 2), ..., (1, 2), ...

    Returns:
        Antisymmetric matrices, `(..., B, m, m)`.

    Source: Foster's thesis (above). The constants are also those that a fine path shows.
    """
    W, H = path.W, path.H
    assert H is not None
    m = W.shape[-1]
    i, j = torch.triu_indices(m, m, 1, device=W.device)
    spread = (h**2 / 20 + h / 5 * (H[..., i] ** 2 + H[..., j] ** 2)).sqrt()
    half = W.new_zeros(*W.shape, m)
    half[..., i, j] = H[..., i] * W[..., j] - W[..., i] * H[..., j] + spread * x
    return half - half.mT

r"""Projections onto the simplex and the ball of the 1-norm, by sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.batch import Batch, Scalar


def simplex(x: Tensor, radius: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of the simplex $\{y \ge 0,\ \sum_i y_i = \rho\}$, exactly.

    $y = \max(x - \tau, 0)$, where $\tau$ follows from the sorted entries: with $s_k$ the sum of the $k$ largest, from
    the last $k$ whose entry exceeds $(s_k - \rho) / k$. The derivative is $I - 1 1^\top / k$ on the support and zero
    elsewhere; an entry that is zero without being pushed there counts as outside of the support. Costs $n \log n$.

    It is what `softmax` is not, sparse. Not where every entry needs a gradient, which those outside the support lack.
    Entries of `-inf` are masked: zero, and without a gradient.

    Source: M. Held, P. Wolfe, H. Crowder, Mathematical Programming 6 (1974) 62.

    Args:
        x: points `(..., n)`.
        radius: $\rho \ge 0$, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a radius is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection
        >>> projection.simplex(torch.tensor([[1.0, 0.5, -1.0]]))
        tensor([[0.7500, 0.2500, 0.0000]])
    """
    batch = Batch("simplex", x, masks="some", on_failure=on_failure)
    radius = batch.scalar("radius", radius, at_least=0)
    return batch.finish(*onto_simplex(batch.x, radius))


def sparse_simplex(x: Tensor, count: int, radius: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of the simplex with at most $k$ entries that are not zero, exactly.

    The set is not convex, yet the $k$ largest entries, projected onto their simplex, are nearest; of equal ones the
    first that are found. Derivatives are those of `simplex` for these entries. Entries of `-inf` are masked.

    Source: A. Kyrillidis, S. Becker, V. Cevher, C. Koch, Sparse projections onto the simplex, ICML 2013.

    Args:
        x: points `(..., n)`.
        count: $k$, an integer >= 1.
        radius: $\rho \ge 0$, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: the count is no integer >= 1, a radius is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection
        >>> projection.sparse_simplex(torch.tensor([[0.5, 0.4, 0.3]]), 2)
        tensor([[0.5500, 0.4500, 0.0000]])
    """
    require_count("sparse_simplex", count=count)
    batch = Batch("sparse_simplex", x, masks="some", on_failure=on_failure)
    radius = batch.scalar("radius", radius, at_least=0)
    largest = batch.x.detach().topk(min(count, x.shape[-1])).indices
    others = torch.ones_like(batch.x, dtype=torch.bool).scatter(-1, largest, False)
    return batch.finish(*onto_simplex(batch.x.masked_fill(others, -torch.inf), radius))


def l1_ball(x: Tensor, radius: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of $\{\sum_i |y_i| \le \rho\}$, exactly.

    Points inside stay; others are the projection of their absolute values onto the simplex, with their signs. On the
    sphere itself the derivative is that from outside. Costs $n \log n$.

    Source: J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, ICML 2008, section 4.

    Args:
        x: points `(..., n)`.
        radius: $\rho \ge 0$, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a radius is negative, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("l1_ball", x, on_failure=on_failure)
    radius = batch.scalar("radius", radius, at_least=0)
    return batch.finish(*onto_l1_ball(batch.x, radius))


def onto_l1_ball(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The projection of points `(..., n)` onto balls of radius `(..., 1)`, not negative; see `onto_simplex`."""
    size = x.abs()
    outside = size.detach().sum(-1, keepdim=True) >= radius.detach()
    # Inside, the simplex is farther out and not asked for; any radius does.
    surface, gap, play = onto_simplex(size, torch.where(outside, radius, 1))
    return torch.where(outside, x.detach().sign() * surface, x), gap.masked_fill(~outside, 0), play


def onto_simplex(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The projection of points `(..., n)` onto simplices of radius `(..., 1)`, not negative; and how sure it is.

    $\max(x - \tau, 0)$ is the projection for the $\tau$ with the right sum, and for no other: by how much the sum is
    off, `(..., 1)`, is the whole error. It comes along, with the rounding to be expected of it.
    """
    # A shift changes nothing but the rounding: the support is what is within `radius` of the largest entry.
    x = x - x.detach().amax(-1, keepdim=True)
    plain, wanted = x.detach(), radius.detach()
    entries, order = plain.sort(stable=True, dim=-1, descending=True)
    ranks = torch.arange(x.shape[-1], device=x.device)
    supported = entries * (ranks + 1) > entries.cumsum(-1) - wanted
    size = supported.sum(-1, keepdim=True).clamp_min(1)  # of radius zero: one entry, whose derivative by x is zero
    support = torch.zeros_like(supported).scatter(-1, order, ranks < size)
    threshold = (x.masked_fill(~support, 0).sum(-1, keepdim=True) - radius) / size
    gap = (plain - threshold.detach()).clamp_min(0).sum(-1, keepdim=True) - wanted
    play = 2 * torch.finfo(x.dtype).eps * (size + 8) * wanted
    return (x - threshold).masked_fill(~support, 0).clamp_min(0), gap.abs(), play

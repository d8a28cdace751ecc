r"""Projections onto boxes and onto the balls of the 2-norm and the maximum norm, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.batch import Batch, Scalar, polar


def l2_ball(x: Tensor, radius: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of $\{|y|_2 \le \rho\}$: $x \min(1, \rho / |x|_2)$.

    On the sphere itself the derivative is that from outside, $I - x x^\top / |x|^2$.

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
    batch = Batch("l2_ball", x, on_failure=on_failure)
    radius = batch.scalar("radius", radius, at_least=0)
    return batch.finish(*onto_ball(batch.x, radius))


def linf_ball(x: Tensor, radius: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of $\{\max_i |y_i| \le \rho\}$: every entry clamped to $[-\rho, \rho]$.

    On the boundary the derivative is that from outside, as with `box`. Entries of `-inf` are $-\rho$.

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
    batch = Batch("linf_ball", x, masks="all", on_failure=on_failure)
    radius = batch.scalar("radius", radius, at_least=0)
    return batch.finish(onto_box(batch.x, -radius, radius))


def box(x: Tensor, lower: Scalar, upper: Scalar, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of $\{l \le y \le u\}$: every entry clamped.

    Unlike `torch.clamp`, an entry that lies on its bound moves with the bound, and a box without a point is refused.
    Entries of `-inf` are their lower bound, where that is finite.

    Args:
        x: points `(..., n)`.
        lower: $l$, a number or a tensor that broadcasts to `x`; may be `-inf`.
        upper: $u$, likewise; may be `inf`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a lower bound exceeds the upper one, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("box", x, masks="all", on_failure=on_failure)
    least, most = bounds(batch, lower, upper)
    return batch.finish(onto_box(batch.x, least, most))


def bounds(batch: Batch, lower: Scalar, upper: Scalar) -> tuple[Tensor, Tensor]:
    """The bounds of a box in the working dtype, as they are shared; excludes what is masked and has none.

    Raises:
        ValueError: a lower bound exceeds the upper one.
    """
    numbers = not isinstance(lower, Tensor) and not isinstance(upper, Tensor)
    least, most = batch.vector("lower", lower, infinite=True), batch.vector("upper", upper, infinite=True)
    if isinstance(lower, Tensor) or lower == -torch.inf:
        batch.check_masks(least)
    if numbers and lower < upper:
        return least, most
    low, high = torch.broadcast_tensors(least.detach(), most.detach())
    crossed = (low > high) | ((low == high) & low.isinf())
    if crossed.dim():
        worst = (low - high).nan_to_num().argmax(-1, keepdim=True)
        crossed, low, high = crossed.any(-1), low.gather(-1, worst)[..., 0], high.gather(-1, worst)[..., 0]
    batch.refuse(crossed, "lower <= upper, and a finite number between them", lower=low, upper=high)
    return least, most


def onto_ball(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, float]:
    """The projection of vectors `(..., n)` onto balls of radius `(..., 1)`, not negative; and how sure it is.

    Outside it is the radius times a direction: by how much this one's length is off is the whole error.
    """
    length, direction, gap = polar(x)
    outside = length.detach() >= radius.detach()
    surface = torch.where(outside, radius, 1) * direction  # the quotient of radius and length may be nothing
    return torch.where(outside, surface, x), gap, 4 * torch.finfo(x.dtype).eps * (x.shape[-1] + 8)


def onto_box(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Clamped entries; one on its bound is the bound's."""
    return torch.where(x <= lower, lower, torch.where(x >= upper, upper, x))

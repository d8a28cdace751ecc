r"""Projections onto a box cut by a hyperplane, by the sorted breakpoints of one piecewise linear equation.

The projection is $y(\tau) = \mathrm{clip}(x - \tau a, l, u)$ for the $\tau$ with $a^\top y(\tau) = b$. The left-hand
side falls with $\tau$; its slope changes by $\mp a_i^2$ where entry $i$ leaves one bound and where it arrives at the
other. So between two sorted breakpoints it is a line, and $\tau$ the zero of one. Costs $n \log n$, without iteration.

Source: P. Brucker, Operations Research Letters 3 (1984) 163, for the breakpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.front_door import front_door
from torchimplicit.optim.projection.balls import bounds
from torchimplicit.optim.projection.batch import Batch, Scalar


@front_door
def box_section(x: Tensor, lower: Scalar, upper: Scalar, a: Tensor, b: Scalar) -> Tensor:
    r"""The nearest point of $\{l \le y \le u,\ a^\top y = b\}$, exactly.

    The derivative is that of the projection onto $a^\top y = b$ over the entries between their bounds; an entry that
    is on its bound without being pushed there counts as held by it. Where all entries are on their bounds ($a^\top y$
    can not say which of them moves with $b$), one of them follows $b$.

    Args:
        x: points `(..., n)`.
        lower: $l$, a number or a tensor that broadcasts to `x`; may be `-inf`.
        upper: $u$, likewise; may be `inf`.
        a: the normal, `(n,)` or `(..., n)`; entries may be negative or zero.
        b: the offset, a number or one per sample, `(...)`.

    Returns:
        The projections, as `x`.

    Raises:
        ValueError: a lower bound exceeds the upper one, the hyperplane misses the box, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection
        >>> x, a = torch.tensor([[2.0, 0.0, 0.5]]), torch.tensor([1.0, -1.0, 2.0])
        >>> projection.box_section(x, 0.0, 1.0, a, 1.0)
        tensor([[1.0000, 0.2000, 0.1000]])
    """
    return _section("box_section", x, lower, upper, a, b, "min a'y <= b <= max a'y over the box")


@front_door
def capped_simplex(x: Tensor, total: Scalar = 1.0, cap: Scalar = 1.0) -> Tensor:
    r"""The nearest point of $\{0 \le y \le c,\ \sum_i y_i = s\}$, exactly: a choice of $s$ entries, relaxed.

    See `box_section` for the method and for what holds on the boundary.

    Args:
        x: points `(..., n)`.
        total: $s$, a number or one per sample, `(...)`, between 0 and $\sum_i c_i$.
        cap: $c \ge 0$, a number or a tensor that broadcasts to `x`.

    Returns:
        The projections, as `x`.

    Raises:
        ValueError: a cap is negative, the total is negative or more than the caps hold, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    ones = torch.ones_like(x.detach()) if isinstance(x, Tensor) else x
    return _section("capped_simplex", x, 0.0, cap, ones, total, "0 <= total <= the sum of the caps")


def _section(name: str, x: Tensor, lower: Scalar, upper: Scalar, a: Tensor, b: Scalar, expected: str) -> Tensor:
    batch = Batch(name, x)
    offset = "b" if name == "box_section" else "total"
    least, most = bounds(batch, lower, upper)
    normal, level = batch.vector("a", a), batch.scalar(offset, b)
    point, least, most, normal = torch.broadcast_tensors(batch.x, least, most, normal)
    low, high, rounding = _range(least.detach(), most.detach(), normal.detach(), level.detach())
    missed = (level.detach() < low - rounding) | (level.detach() > high + rounding)
    batch.refuse(missed[..., 0], expected, **{offset: level[..., 0], "min": low[..., 0], "max": high[..., 0]})
    return batch.finish(_onto_section(point, least, most, normal, level, rounding))


def _range(lower: Tensor, upper: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the largest `a'y` over the box, and how far rounding may take them; `(..., 1)` each."""
    used = a != 0
    first, second = torch.where(used, a * lower, 0), torch.where(used, a * upper, 0)
    near = a * torch.zeros_like(a).clamp(lower, upper)
    rounding = 2 * torch.finfo(a.dtype).eps * a.shape[-1] * (b.abs() + near.abs().sum(-1, keepdim=True))
    least = torch.minimum(first, second).sum(-1, keepdim=True)
    return least, torch.maximum(first, second).sum(-1, keepdim=True), rounding


def _onto_section(x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, rounding: Tensor) -> Tensor:
    """The projection; everything `(..., n)`, `b` and `rounding` `(..., 1)`."""
    free, bound, shift = _solve(*(tensor.detach() for tensor in (x, lower, upper, a, b, rounding)))
    lower_or_upper = torch.where(bound < 0, lower, upper)
    still = a.detach() == 0  # the hyperplane does not see these
    clipped = torch.where(x <= lower, lower, torch.where(x >= upper, upper, x))
    # A shift along the normal changes nothing but the rounding: numbers are of the box's size then, not of the point's.
    x = torch.where(free, x - shift * a, 0)
    normal = torch.where(free, a, 0)
    held = torch.where(free | still, 0, lower_or_upper)
    size = normal.square().sum(-1, keepdim=True)
    moving = size.detach() > 0
    tau = ((normal * x).sum(-1, keepdim=True) + (a * held).sum(-1, keepdim=True) - b) / torch.where(moving, size, 1)
    y = torch.where(still, clipped, torch.where(free, x - tau * normal, held))
    return torch.clamp(y, lower, upper)


def _solve(
    x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, rounding: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries are free `(..., n)`, at which bound (-1, 1) they would be else, and a `tau` `(..., 1)` near."""
    moves = (a != 0) & (lower < upper)
    divisor = torch.where(moves, a, 1)
    at_lower, at_upper = (x - lower) / divisor, (x - upper) / divisor
    start, end = torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper)
    # Where several lie at one place, ends come first: the fewest entries are then free in between. Those that do not
    # move count for nothing, wherever they are.
    points = torch.where(torch.cat([moves, moves], -1), torch.cat([end, start], -1), 0)
    points, order = points.sort(stable=True, dim=-1)
    one = moves.to(torch.int64)
    slopes, counts = (
        torch.cat([-change, change], -1).gather(-1, order).cumsum(-1) for change in (a.square() * one, one)
    )
    values = _values(points, torch.where(counts > 0, slopes, 0), x, lower, upper, a)
    segment = _segment(values, counts, b, rounding)
    rank = torch.empty_like(order).scatter(-1, order, torch.arange(order.shape[-1], device=x.device).expand_as(order))
    ended, started = (rank <= segment).chunk(2, -1)
    free = moves & started & ~ended
    bound = torch.where(moves & (started == (a > 0)), -1, 1)
    left, right = points.gather(-1, segment), points.gather(-1, segment + 1)
    near = torch.where(left.isfinite(), left, torch.where(right.isfinite(), right, 0))
    return free, bound, near


def _values(points: Tensor, slopes: Tensor, x: Tensor, lower: Tensor, upper: Tensor, a: Tensor) -> Tensor:
    """`a'y` at every sorted breakpoint `(..., 2n)`; `slopes` are those behind each, with the sign turned."""
    finite = points.isfinite()
    safe = torch.where(finite, points, 0)
    both = finite[..., 1:] & finite[..., :-1]
    falls = torch.where(both, slopes[..., :-1] * (safe[..., 1:] - safe[..., :-1]), 0)
    falls = torch.cat([torch.zeros_like(safe[..., :1]), falls], -1).cumsum(-1)
    # Known outright at one finite breakpoint, the middle one, and from there by the steps.
    middle = (points == -torch.inf).sum(-1, keepdim=True) + finite.sum(-1, keepdim=True) // 2
    middle = middle.clamp_max(points.shape[-1] - 1)
    there = (a * (x - safe.gather(-1, middle) * a).clamp(lower, upper)).sum(-1, keepdim=True)
    return torch.where(finite, there + falls.gather(-1, middle) - falls, -points)


def _segment(values: Tensor, counts: Tensor, b: Tensor, rounding: Tensor) -> Tensor:
    """The breakpoint `(..., 1)` behind which the solution lies; of several, one with the fewest free entries.

    Where `a'y` is level at `b`, all entries are on their bounds and stay there when `x` moves: one entry is called
    free, which `b` then fixes. Were it more, they would trade with each other in the derivative.
    """
    place = torch.arange(values.shape[-1], device=values.device)
    first = (values > b + rounding).sum(-1, keepdim=True) - 1
    last = (values >= b - rounding).sum(-1, keepdim=True) - 1
    allowed = (place >= first) & (place <= last) & (counts > 0) & (place < values.shape[-1] - 1)
    cost = torch.where(allowed, counts, values.shape[-1])
    return cost.argmin(-1, keepdim=True).clamp_max(values.shape[-1] - 2)

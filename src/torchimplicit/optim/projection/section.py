r"""Projections onto a box cut by a hyperplane, by the sorted breakpoints of one piecewise linear equation.

The projection is $y(\tau) = \mathrm{clip}(x - \tau a, l, u)$ for the $\tau$ with $a^\top y(\tau) = b$, and by how much
this is missed is the whole error. The left-hand side falls with $\tau$, and between two of the places where an entry
leaves one bound or arrives at the other it is a line. A search over these, sorted, evaluates it at $\log_2 2n$ of them;
running sums over all would lose, where bounds are far away, all digits of what is between. Costs $n \log n$.

Source: P. Brucker, Operations Research Letters 3 (1984) 163, for the breakpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.front_door import front_door
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.balls import bounds
from torchimplicit.optim.projection.batch import Batch, Label, Scalar


@front_door
def box_section(
    x: Tensor, lower: Scalar, upper: Scalar, a: Tensor, b: Scalar, *, on_failure: OnFailure = "raise"
) -> Tensor:
    r"""The nearest point of $\{l \le y \le u,\ a^\top y = b\}$, exactly.

    The derivative is that of the projection onto $a^\top y = b$ over the entries between their bounds; an entry that
    is on its bound without being pushed there counts as held by it. Where all entries are on their bounds ($a^\top y$
    can not say which of them moves with $b$), one of them follows $b$. Entries of `-inf` are held at their lower bound,
    where that is finite.

    Args:
        x: points `(..., n)`.
        lower: $l$, a number or a tensor that broadcasts to `x`; may be `-inf`.
        upper: $u$, likewise; may be `inf`.
        a: the normal, `(n,)` or `(..., n)`; entries may be negative or zero.
        b: the offset, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a lower bound exceeds the upper one, the hyperplane misses the box, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection
        >>> x, a = torch.tensor([[2.0, 0.0, 0.5]]), torch.tensor([1.0, -1.0, 2.0])
        >>> projection.box_section(x, 0.0, 1.0, a, 1.0)
        tensor([[1.0000, 0.2000, 0.1000]])
    """
    return _section("box_section", x, lower, upper, a, b, "min a'y <= b <= max a'y over the box", on_failure)


@front_door
def capped_simplex(
    x: Tensor, total: Scalar = 1.0, cap: Scalar = 1.0, *, on_failure: OnFailure = "raise"
) -> Tensor:
    r"""The nearest point of $\{0 \le y \le c,\ \sum_i y_i = s\}$, exactly: a choice of $s$ entries, relaxed.

    See `box_section` for the method and for what holds on the boundary. Entries of `-inf` are masked: zero, and without
    a gradient.

    Args:
        x: points `(..., n)`.
        total: $s$, a number or one per sample, `(...)`, between 0 and $\sum_i c_i$.
        cap: $c \ge 0$, a number or a tensor that broadcasts to `x`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a cap is negative, the total is negative or more than the caps hold, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    ones = torch.ones_like(x.detach()) if isinstance(x, Tensor) else x
    return _section("capped_simplex", x, 0.0, cap, ones, total, "0 <= total <= the sum of the caps", on_failure)


def _section(
    name: str, x: Tensor, lower: Scalar, upper: Scalar, a: Tensor, b: Scalar, expected: str, on_failure: OnFailure
) -> Tensor:
    batch = Batch(name, x, masks="all", on_failure=on_failure)
    offset = "b" if name == "box_section" else "total"
    least, most = bounds(batch, lower, upper)
    normal, level = batch.vector("a", a), batch.scalar(offset, b)
    point, least, most, normal = torch.broadcast_tensors(batch.x, least, most, normal)
    gone = point.detach() == -torch.inf
    point, most = point.masked_fill(gone, 0), torch.where(gone, least, most)
    largest = normal.detach().abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1)  # of no derivative: only the ratios matter
    unit = normal / largest
    plain = least.detach(), most.detach(), unit.detach(), (level / largest).detach()
    low, high, rounding = _range(*plain)
    missed = (plain[3] < low - rounding) | (plain[3] > high + rounding)
    told = {offset: level, "min": low * largest, "max": high * largest}
    batch.refuse(missed[..., 0], expected, **{key: value[..., 0] for key, value in told.items()})
    pieces: Any = Label.apply(_pieces, point.detach(), *plain, rounding)
    y = _on_pieces(point, least, most, unit, level / largest, *pieces[:3])
    return batch.finish(y, *pieces[3:])


def _range(lower: Tensor, upper: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the largest `a'y` over the box, and how far rounding may take them; `(..., 1)` each."""
    used = a != 0
    first, second = torch.where(used, a * lower, 0), torch.where(used, a * upper, 0)
    near = a * torch.zeros_like(a).clamp(lower, upper)
    rounding = 2 * torch.finfo(a.dtype).eps * a.shape[-1] * (b.abs() + near.abs().sum(-1, keepdim=True))
    least = torch.minimum(first, second).sum(-1, keepdim=True)
    return least, torch.maximum(first, second).sum(-1, keepdim=True), rounding


def _on_pieces(
    x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, free: Tensor, at_lower: Tensor, shift: Tensor
) -> Tensor:
    """The projection where it is known which entries are free and at which bound the others are; see `_pieces`."""
    still = a.detach() == 0  # the hyperplane does not see these
    clipped = torch.where(x <= lower, lower, torch.where(x >= upper, upper, x))
    held = torch.where(at_lower, lower, upper).masked_fill(free | still, 0)
    # A shift along the normal changes nothing but the rounding: numbers are of the box's size then, not of the point's.
    x, normal = (x - shift * a).masked_fill(~free, 0), a.masked_fill(~free, 0)
    unit, distance, _ = _slide(x, normal, (a * held).sum(-1, keepdim=True) - b)
    return torch.where(still, clipped, torch.where(free, x - distance * unit, held)).clamp(lower, upper)


def _slide(x: Tensor, normal: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The way from `x` `(..., n)` to `normal'x + rest = 0`: a direction, how far, and the normal in directions.

    The largest entry of the direction is one, so that squares of small ones are not lost.
    """
    size = normal.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1)
    unit = normal / size
    squares = unit.square().sum(-1, keepdim=True)
    distance = ((normal * x).sum(-1, keepdim=True) + rest) / size / torch.where(squares.detach() > 0, squares, 1)
    return unit, distance, size


def _pieces(x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, rounding: Tensor) -> tuple[Tensor, ...]:
    """Which entries are free, which are at their lower bound else, a `tau` near; how far all is off, and its rounding.

    The first two are `(..., n)`, the others `(..., 1)`.
    """
    free, at_lower, near = _search(x, lower, upper, a, b, rounding)
    held, normal, rest = _held(free, at_lower, lower, upper, a, b)
    _, distance, size = _slide(x - near * a, normal, rest)
    shift = near + distance / size  # a line's zero from far away: what rounding has left is for `_on_pieces`
    gap, play = _missed(x - shift * a, lower, upper, a, b, free, held, normal, rest)
    if bool((gap <= play).all()):
        return free, at_lower, shift, gap, play
    # So far away from the box that rounding has mixed up the breakpoints: they are told apart from nearby.
    again = _search(x - shift * a, lower, upper, a, b, rounding)[:2]
    retried = _missed(x - shift * a, lower, upper, a, b, again[0], *_held(*again, lower, upper, a, b))
    better = retried[0] < gap
    pairs = zip((*again, *retried), (free, at_lower, gap, play), strict=True)
    free, at_lower, gap, play = (torch.where(better, new, old) for new, old in pairs)
    return free, at_lower, shift, gap, play


def _held(
    free: Tensor, at_lower: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries on their bounds, the normal of the others, and what it must make up for."""
    held = torch.where(at_lower, lower, upper).masked_fill(free | (a == 0), 0)
    return held, a * free, (a * held).sum(-1, keepdim=True) - b


def _missed(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    a: Tensor,
    b: Tensor,
    free: Tensor,
    held: Tensor,
    normal: Tensor,
    rest: Tensor,
) -> tuple[Tensor, Tensor]:
    """By how much `a'y = b` and the pieces are missed by `y(tau)`, for the `tau` of the pieces; and its rounding."""
    unit, distance, size = _slide(x, normal, rest)
    most = torch.finfo(a.dtype).max
    claimed = torch.where(free, x - distance * unit, held)
    y = torch.where(free, claimed, x - (distance / size).clamp(-most, most) * a).clamp(lower, upper)
    terms = (a * y).masked_fill(a == 0, 0)
    gap = (terms.sum(-1, keepdim=True) - b).abs() + (a * claimed - terms).abs().sum(-1, keepdim=True)
    rounding = 4 * torch.finfo(a.dtype).eps * (free.sum(-1, keepdim=True) + 8)
    return gap, rounding * (terms.abs().sum(-1, keepdim=True) + b.abs())


def _search(
    x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, rounding: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries are free, which are at their lower bound else, `(..., n)`, and a `tau` `(..., 1)` of that piece.

    Where `a'y` is level at `b`, all entries are on their bounds and stay there when `x` moves: one entry is called
    free, which `b` then fixes. Were it more, they would trade with each other in the derivative.
    """
    moves = (a != 0) & (lower < upper)
    divisor, far = torch.where(moves, a, 1), torch.finfo(a.dtype).max / 4
    at_lower, at_upper = (x - lower) / divisor, (x - upper) / divisor
    # Where several lie at one place, ends come first: the fewest entries are then free in between. Those that do not
    # move count for nothing, wherever they are.
    points = torch.cat([torch.maximum(at_lower, at_upper), torch.minimum(at_lower, at_upper)], -1)
    points, order = points.clamp(-far, far).masked_fill(~torch.cat([moves, moves], -1), 0).sort(stable=True, dim=-1)
    one = moves.to(torch.int64)
    counts = torch.cat([-one, one], -1).gather(-1, order).cumsum(-1)
    tiny = torch.finfo(a.dtype).tiny
    first, last = _above(points, torch.cat([b + rounding, b - rounding - tiny], -1), x, lower, upper, a)
    place = torch.arange(points.shape[-1], device=points.device)
    allowed = (place >= first - 1) & (place < last) & (counts > 0) & (place < points.shape[-1] - 1)
    segment = torch.where(allowed, counts, points.shape[-1]).argmin(-1, keepdim=True).clamp_max(points.shape[-1] - 2)
    rank = torch.empty_like(order).scatter(-1, order, place.expand_as(order))
    ended, started = (rank <= segment).chunk(2, -1)
    left, right = points.gather(-1, segment), points.gather(-1, segment + 1)
    return moves & started & ~ended, started == (a > 0), torch.zeros_like(b).clamp(left, right)


def _above(
    points: Tensor, levels: Tensor, x: Tensor, lower: Tensor, upper: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    """At how many of the sorted breakpoints `(..., m)` `a'y` is above each of two levels `(..., 2)`: `(..., 1)` each.

    By bisection, as it falls: every value that is compared is a sum of its own.
    """
    rounds = points.shape[-1].bit_length()
    padding = torch.full_like(points[..., :1], torch.finfo(points.dtype).max / 4)
    points = torch.cat([points, padding.expand(*points.shape[:-1], 2**rounds - 1 - points.shape[-1])], -1)
    x, lower, upper, a = (tensor.unsqueeze(-2) for tensor in (x, lower, upper, a))
    count = torch.zeros_like(levels, dtype=torch.int64)
    for step in (2**k for k in reversed(range(rounds))):
        tau = points.gather(-1, count + (step - 1)).unsqueeze(-1)
        value = (a * (x - tau * a).clamp(lower, upper)).sum(-1)
        count = count + step * (value > levels)
    first, last = count.chunk(2, -1)
    return first, last

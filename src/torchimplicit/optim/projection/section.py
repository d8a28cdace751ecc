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

from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.balls import bounds
from torchimplicit.optim.projection.batch import Batch, Label, Scalar

_LOOKS = 5  # at the breakpoints: one, but for far points and small offsets


@public
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


@public
def capped_simplex(x: Tensor, total: Scalar = 1.0, cap: Scalar = 1.0, *, on_failure: OnFailure = "raise") -> Tensor:
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
    y = _on_pieces(point, least, most, unit, level / largest, *pieces[:4])
    return batch.finish(y, *pieces[4:])


def _range(lower: Tensor, upper: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the largest `a'y` over the box, and how far rounding may take them; `(..., 1)` each."""
    used = a != 0
    first, second = torch.where(used, a * lower, 0), torch.where(used, a * upper, 0)
    near = a * torch.zeros_like(a).clamp(lower, upper)
    rounding = 2 * torch.finfo(a.dtype).eps * a.shape[-1] * (b.abs() + near.abs().sum(-1, keepdim=True))
    least = torch.minimum(first, second).sum(-1, keepdim=True)
    return least, torch.maximum(first, second).sum(-1, keepdim=True), rounding


def _on_pieces(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    a: Tensor,
    b: Tensor,
    free: Tensor,
    at_lower: Tensor,
    shift: Tensor,
    again: Tensor,
) -> Tensor:
    """The projection from the active set: the free entries, and the bounds of the others; see `_pieces`."""
    still = a.detach() == 0  # the hyperplane does not see these
    clipped = torch.where(x <= lower, lower, torch.where(x >= upper, upper, x))
    held = torch.where(at_lower, lower, upper).masked_fill(free | still, 0)
    # A shift along the normal changes nothing but the rounding: numbers are of the box's size then, not of the point's.
    x, normal = (x - shift * a - again * a).masked_fill(~free, 0), a.masked_fill(~free, 0)
    unit, size, squares = _measured(normal)
    distance = ((normal * x).sum(-1, keepdim=True) + (a * held).sum(-1, keepdim=True) - b) / size / squares
    return torch.where(still, clipped, torch.where(free, x - distance * unit, held)).clamp(lower, upper)


def _measured(normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A normal over its largest entry, so that squares of small ones are not lost; that entry; and the squares' sum."""
    size = normal.detach().abs().amax(-1, keepdim=True)
    moving = size > 0
    size = torch.where(moving, size, 1)
    unit = normal / size
    return unit, size, torch.where(moving, unit.square().sum(-1, keepdim=True), 1)


def _pieces(x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, rounding: Tensor) -> tuple[Tensor, ...]:
    """Which entries are free, which at their lower bound else; a `tau` near, in two parts; what is missed; rounding.

    The first two are `(..., n)`, the others `(..., 1)`.
    """
    start, shifts = x, [torch.zeros_like(b), torch.zeros_like(b)]
    for look in range(_LOOKS):
        free, at_lower, near = _search(x, lower, upper, a, b, rounding)
        line = _line(lower, upper, a, b, free, at_lower)
        gap, play = _missed(x, lower, upper, a, b, free, *line)
        off = ~(gap <= play)
        if look == _LOOKS - 1 or not bool(off.any()):
            break
        # So far away that rounding has mixed up the breakpoints, or hides the point: once more, from nearby.
        shift = (near + _zero(x - near * a, *line[1:])).masked_fill(~off, 0)
        shifts = [shifts[0], shifts[1] + shift] if look else [shift, shifts[1]]  # their sum would lose the second
        x = start - shifts[0] * a - shifts[1] * a
    return free, at_lower, *shifts, gap, play


def _line(
    lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, free: Tensor, at_lower: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is held at its bounds, the free entries' normal, what that must make up for, and its length, squared."""
    held = torch.where(at_lower, lower, upper).masked_fill(free | (a == 0), 0)
    normal = a * free
    _, size, squares = _measured(normal)
    return held, normal / size, ((a * held).sum(-1, keepdim=True) - b) / size, squares * size


def _zero(x: Tensor, unit: Tensor, rest: Tensor, squares: Tensor) -> Tensor:
    """The `tau` at which the free entries are on the plane."""
    return ((unit * x).sum(-1, keepdim=True) + rest) / squares


def _missed(
    x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, free: Tensor, held: Tensor, *line: Tensor
) -> tuple[Tensor, Tensor]:
    """By how much `a'y(tau) = b` and the pieces are missed, for the `tau` of these; and the rounding to be expected."""
    x = x - _zero(x, *line) * a
    terms = (a * x.clamp(lower, upper)).masked_fill(a == 0, 0)
    gap = (terms.sum(-1, keepdim=True) - b).abs()
    gap = gap + (a * torch.where(free, x, held) - terms).abs().sum(-1, keepdim=True)
    rounding = 4 * torch.finfo(a.dtype).eps * (free.sum(-1, keepdim=True) + 8)
    return gap, rounding * (terms.abs().sum(-1, keepdim=True) + b.abs())


def _search(
    x: Tensor, lower: Tensor, upper: Tensor, a: Tensor, b: Tensor, rounding: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries are free, which are at their lower bound else, `(..., n)`, and a `tau` `(..., 1)` of that piece."""
    moves = (a != 0) & (lower < upper)
    divisor, far = torch.where(moves, a, 1), torch.finfo(a.dtype).max / 4
    at_lower, at_upper = (x - lower) / divisor, (x - upper) / divisor
    starts = torch.minimum(at_lower, at_upper).clamp(-far, far)
    after = torch.nextafter(starts, starts.new_tensor(torch.inf))  # a box of less than rounding has two places, too
    ends = torch.maximum(torch.maximum(at_lower, at_upper).clamp_max(far), after)
    # Where several lie at one place, ends come first: the fewest entries are then free in between. Those that do not
    # move count for nothing, wherever they are.
    points = torch.cat([ends, starts], -1).masked_fill(~torch.cat([moves, moves], -1), 0)
    points, order = points.sort(stable=True, dim=-1)
    one = moves.to(torch.int64)
    counts = torch.cat([-one, one], -1).gather(-1, order).cumsum(-1)
    place = torch.arange(points.shape[-1], device=points.device)
    segment = _segment(points, counts, place, x, lower, upper, a, b, rounding)
    rank = torch.empty_like(order).scatter(-1, order, place.expand_as(order))
    ended, started = (rank <= segment).chunk(2, -1)
    left, right = points.gather(-1, segment), points.gather(-1, segment + 1)
    return moves & started & ~ended, started == (a > 0), torch.zeros_like(b).clamp(left, right)


def _segment(
    points: Tensor,
    counts: Tensor,
    place: Tensor,
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    a: Tensor,
    b: Tensor,
    rounding: Tensor,
) -> Tensor:
    """The breakpoint `(..., 1)` behind which the solution lies; of several, one with the fewest free entries.

    Where `a'y` is level at `b`, all entries are on their bounds and stay there when `x` moves: one entry is called
    free, which `b` then fixes. Were it more, they would trade with each other in the derivative.
    """
    last = _above(points, b - rounding - torch.finfo(a.dtype).tiny, x, lower, upper, a)
    tau = points.gather(-1, (last - 1).clamp_min(0))
    level = (a * torch.addcmul(x, tau, a, value=-1).clamp(lower, upper)).sum(-1, keepdim=True) <= b + rounding
    first = _above(points, b + rounding, x, lower, upper, a) if bool(level.any()) else last
    # Where rounding leaves none of these with a free entry, it is one beside them, rather behind: a'y fell below there.
    beside, size = 2 * (first - 1 - place).clamp_min(0) + (place + 1 - last).clamp_min(0), points.shape[-1]
    cost = (counts + size * beside).masked_fill((counts <= 0) | (place == size - 1), 2 * size**2 + size)
    return cost.argmin(-1, keepdim=True).clamp_max(size - 2)


def _above(points: Tensor, level: Tensor, x: Tensor, lower: Tensor, upper: Tensor, a: Tensor) -> Tensor:
    """At how many of the sorted breakpoints `(..., m)` `a'y` is above a level `(..., 1)`, which is its shape.

    By bisection, as it falls: every value that is compared is a sum of its own.
    """
    size = points.shape[-1]
    rounds = size.bit_length()
    padding = torch.full_like(points[..., :1], torch.finfo(points.dtype).max / 4)
    points = torch.cat([points, padding.expand(*points.shape[:-1], 2**rounds - 1 - size)], -1)
    count = torch.zeros_like(level, dtype=torch.int64)
    for step in (2**k for k in reversed(range(rounds))):
        tau = points.gather(-1, count + (step - 1))
        value = (a * torch.addcmul(x, tau, a, value=-1).clamp(lower, upper)).sum(-1, keepdim=True)
        count = count.add(value > level, alpha=step)
    return count.clamp_max(size)

"""Brownian motion asked for by times: a dyadic tree of bridges, descended anew for every question."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import is_count, is_number, require
from torchimplicit.sde import normals
from torchimplicit.sde.bridge import Increment, bridge, chosen, scaled
from torchimplicit.sde.draws import Draws
from torchimplicit.sde.seeds import Seeded


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree(Seeded):
    """A source of Brownian paths whose increments and areas are had for any interval, at times of each sample's own.

    The span is halved `depth` times; in the last cell the path is bridged to the very time. The law is right for times
    in different cells. Within a cell all times share their draws, so intervals shorter than one are refused.

    As `brownian=` of `sdeint` it gives the same path to all solvers at all steps, chosen ones included.

    A question takes some 25 operations for each of `depth + 1` levels: for steps of fixed sizes `Brownian(base=...)`
    gives the same path at `dt`, `dt / 2`, ... for two draws a step.

    Args:
        seed: see `Seeded`.
        span: times between which the path is known; it starts at zero.
        depth: how often the span is halved, 1 to 50: `2 ** -depth` of it must be less than the shortest step.

    Raises:
        TypeError: a seed that is no integer.
        ValueError: a seed of another shape, an empty span, another depth.
    """

    span: tuple[float, float] = (0.0, 1.0)
    depth: int = 16

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        fits = isinstance(self.span, tuple) and len(self.span) == 2 and all(map(is_number, self.span))
        fits = fits and -math.inf < self.span[0] < self.span[1] < math.inf
        require(self, "span", fits, "a start and an end after it, finite numbers")
        fits = is_count(self.depth) and self.depth <= 50
        require(self, "depth", fits, "an integer from 1 to 50: float64 times have 52 bits")

    @property
    def cell(self) -> float:
        """The length of the shortest interval whose law is right."""
        return (self.span[1] - self.span[0]) / 2**self.depth

    def bind(self, like: Any, area: bool = True) -> PathInTree:
        """The path of one solve; see `Brownian.bind`."""
        return PathInTree(self, like, area)


class PathInTree(Draws):
    """The path of one solve; `Tree.bind` makes it. See `Draws`.

    Args:
        source: what asks for it.
        like: see `Draws`.
        area: whether steps have a space-time area.
    """

    source: Tree

    def __init__(self, source: Tree, like: Any, area: bool = True):
        super().__init__(source, like)
        self.area = area

    def at(self, t: float | Tensor) -> Tensor:
        """The path at some times, `(..., B, m)`.

        Args:
            t: a number, or times `(B,)` or `(..., B)`.

        Raises:
            ValueError: a time outside of the span.
        """
        return self._descend(self._times(t))[0].to(self.dtype)

    def between(self, start: float | Tensor, stop: float | Tensor) -> Increment:
        """The path over intervals and its space-time area, `(..., B, m)`.

        Args:
            start: a number, or times `(B,)` or `(..., B)`.
            stop: likewise, after the start.

        Raises:
            ValueError: an interval that is shorter than a cell, or not within the span.
        """
        a, b = torch.broadcast_tensors(self._times(start), self._times(stop))
        h = b - a
        if bool((h < self.source.cell * (1 - 1e-9)).any()):
            raise ValueError(
                f"between: got an interval of length {h.min().item():.3g}, expected at least {self.source.cell:.3g}, a "
                f"cell of Tree(depth={self.source.depth}), within which increments are not independent; try a larger "
                "depth, or longer steps"
            )
        return self._between(a, b)

    def over(self, start: Tensor, stop: Tensor, whole: bool = True) -> Increment:
        """The path over steps of a solve, `(B, m)`; zero where samples stand still.

        Args:
            start: times `(B,)`.
            stop: likewise, not before the start.
            whole: whether a step that is shorter than a cell is refused: what is left of a step may be.
        """
        moves, (low, high) = stop > start, self.source.span
        path = (self.between if whole else self._between)(
            *(self._times(torch.where(moves, t, end)) for t, end in ((start, low), (stop, high)))
        )
        path = path.each(lambda part: torch.where(moves.unsqueeze(1), part, 0.0))
        return path if self.area else path._replace(H=None)

    def _between(self, a: Tensor, b: Tensor) -> Increment:
        path, integral = self._descend(torch.stack([a, b]))
        W = path[1] - path[0]
        H = (integral[1] - integral[0]) / (b - a).unsqueeze(-1) - path[0] - 0.5 * W
        return Increment(W.to(self.dtype), H.to(self.dtype))

    def _times(self, t: float | Tensor) -> Tensor:
        """Times in double precision, one a sample."""
        low, high = self.source.span
        times = torch.as_tensor(t, dtype=torch.float64, device=self.device)
        if not bool(((times >= low) & (times <= high)).all()):
            raise ValueError(f"Tree: got a time outside of span={self.source.span}; try a longer span")
        return times.expand(*times.shape[:-1], len(self.seeds))

    def _draw(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """Two normals `(..., B, m)` for nodes `(..., B)`."""
        words = self.seeds + normals.places(normals.NODE, node)
        return normals.pair(words.unsqueeze(-1), self.channels, torch.float64)

    def _descend(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The path and its integral from the start at times `(..., B)`."""
        left, right = (torch.full_like(t, time) for time in self.source.span)
        root = torch.zeros_like(t, dtype=torch.int64)
        cell = scaled(*self._draw(root), (right - left).unsqueeze(-1))
        return descended(cell, left, right, t, self.source.depth, self._draw)


def descended(
    cell: Increment, left: Tensor, right: Tensor, t: Tensor, depth: int, draw: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """A path and its integral from the start of a cell up to times within it, down the cells that hold them.

    Args:
        cell: the path over it, `(..., B, m)`; without an area the integral is not that of the path.
        left: its start, `(..., B)`.
        right: its end.
        t: the times.
        depth: how often it is halved.
        draw: two normals `(..., B, m)` for nodes `(..., B)`, which count from 1.
    """
    left, right, t = (each.unsqueeze(-1) for each in (left, right, t))
    node = torch.ones_like(t[..., 0], dtype=torch.int64)
    W = integral = torch.zeros_like(cell.W)
    for _ in range(depth):
        middle = 0.5 * (left + right)
        first, second = bridge(cell, middle - left, right - middle, *draw(node))
        later = t >= middle
        W, integral = _after(W, integral, first, middle - left, later)
        cell = chosen(later.squeeze(-1), second, first)
        left, right = torch.where(later, middle, left), torch.where(later, right, middle)
        node = 2 * node + later.squeeze(-1)
    first, _ = bridge(cell, t - left, right - t, *draw(node))
    return _after(W, integral, first, t - left, torch.ones_like(t, dtype=torch.bool))


def _after(W: Tensor, integral: Tensor, part: Increment, h: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """Path and integral behind a part of length `h`, where it is passed."""
    if part.H is None:
        return torch.where(passed, W + part.W, W), integral
    further = integral + h * (W + 0.5 * part.W + part.H)
    return torch.where(passed, W + part.W, W), torch.where(passed, further, integral)

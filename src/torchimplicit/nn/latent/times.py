"""Times of every series' own, from its first one on: what is asked for as what a path can be solved at."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.nn.latent.series import Series
from torchimplicit.nn.latent.series_checks import words


class Outputs(NamedTuple):
    """Where paths are solved, and which of their states were asked for.

    Attributes:
        grid: each series' own times, its first one in front, `(K, B)`; NaN as padding.
        place: in the grid of each time that was asked for, `(T, B)`.
    """

    grid: Tensor
    place: Tensor

    @property
    def shared(self) -> Tensor:
        """The grid; as one list of times, `(K,)`, where all paths share it: their steps are then made together."""
        same = bool((self.grid == self.grid[:, :1]).all())
        return self.grid[:, 0] if same else self.grid

    def repeated(self, samples: int) -> Outputs:
        """The same for so many paths of each series, the first ones of all series first."""
        return Outputs(self.grid.repeat(1, samples), self.place.repeat(1, samples))

    def pick(self, states: Tensor) -> Tensor:
        """Of states at the grid, `(K, N, ...)`, those that were asked for, `(N, T, ...)`."""
        return states[self.place, torch.arange(states.shape[1], device=states.device)].transpose(0, 1)


def start_of(owner: str, series: Series) -> Tensor:
    """The first time of every series, `(B,)`.

    Raises:
        ValueError: one has none.
    """
    start = series.times[:, 0]
    if bool(start.isnan().any()):
        raise ValueError(f"{owner}: series {int(start.isnan().nonzero()[0])} has no times, expected at least one")
    return start


def outputs_of(owner: str, start: Tensor, ts: Tensor, which: str = "first") -> Outputs:
    """Grids for times that are asked for.

    Args:
        owner: who asks, for messages.
        start: when each path starts, `(B,)`.
        ts: `(T,)` for all, or `(B, T)` with NaN as padding, none before the start.
        which: of its times a series' path starts at.

    Raises:
        TypeError: no floating tensor.
        ValueError: of another shape, before the start, or not increasing (that `odeint` says).
    """
    if not isinstance(ts, Tensor) or not ts.is_floating_point():
        raise TypeError(f"{owner}(ts=...): got {words(ts)}, expected a floating tensor; try torch.tensor([0.0, 1.0])")
    count = len(start)
    if ts.dim() not in (1, 2) or ts.shape[-1] == 0 or (ts.dim() == 2 and len(ts) != count):
        raise ValueError(
            f"{owner}(ts=...): got shape {tuple(ts.shape)}, expected (T,) for times that all series share, or "
            f"({count}, T) for times of each, NaN behind its last"
        )
    dtype = torch.promote_types(ts.dtype, start.dtype)
    ts, start = ts.to(dtype).expand(count, -1), start.to(dtype).unsqueeze(1)
    early = (ts < start).any(1)
    if bool(early.any()):
        row = int(early.nonzero()[0])
        raise ValueError(
            f"{owner}(ts=...): got {float(ts[row].nan_to_num(torch.inf).min()):g} for series {row}, expected no time "
            f"before its {which} one, {float(start[row, 0]):g}, where its path starts; try later ones"
        )
    there = ts[:, :1] == start
    if bool(there.all()):
        return Outputs(ts.mT, torch.arange(ts.shape[1], device=ts.device).unsqueeze(1).expand(-1, count))
    grid = torch.where(there, torch.cat((ts, ts.new_full(start.shape, torch.nan)), 1), torch.cat((start, ts), 1))
    place = torch.arange(ts.shape[1], device=ts.device) + ~there
    return Outputs(grid.mT, place.mT)


def folded(tree: pytree.PyTree, samples: int) -> pytree.PyTree:
    """Tensors `(B, ...)` repeated as `(samples * B, ...)`."""
    return pytree.tree_map(lambda leaf: leaf.repeat(samples, *[1] * (leaf.dim() - 1)), tree)

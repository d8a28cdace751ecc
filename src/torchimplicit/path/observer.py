"""Telling the user of every step of a solve."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.state import IntegratorState


class Observer:
    """Calls the user after every step in which some sample has moved, with copies of where all of them stand.

    Args:
        callback: `callback(t, y, moved)`; see `odeint`.
        dynamics: for the form of times and states.
        state: where the samples start.
    """

    def __init__(self, callback: Callable, dynamics: Dynamics, state: IntegratorState):
        self.callback, self.dynamics = callback, dynamics
        self.t, self.y = state.t.clone(), state.y.clone()

    def see(self, state: IntegratorState, before: Tensor, rows: Tensor | None) -> None:
        """Tells of a step of the samples `rows`, all for None, which stood at these times `(B,)` before it."""
        moves = state.t != before
        if not bool(moves.any()):
            return
        if rows is None:
            self.t, self.y, moved = state.t, state.y, moves
        else:
            self.t, self.y = self.t.index_copy(0, rows, state.t), self.y.index_copy(0, rows, state.y)
            moved = torch.zeros_like(self.t, dtype=torch.bool).index_copy(0, rows, moves)
        shape = (-1,) if self.dynamics.batch_dims else ()
        t = self.dynamics.user_time(self.t).clone().view(shape)
        self.callback(t, self.dynamics.layout.unflatten(self.y.clone()), moved.view(shape))

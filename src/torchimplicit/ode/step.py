"""One step of a Runge-Kutta method, written once for every use: in place without gradients, as a graph with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.ode.dynamics import Field
from torchimplicit.ode.tableau import Tableau, weights


class Stepped(NamedTuple):
    """What a step found.

    Attributes:
        y: the state at its end, `(B, n)`.
        error: the estimate of its error, `(B, n)`; None for fixed steps.
        slope: the slope at its end, where the method knows it, `(B, n)`; None otherwise.
        inside: the path between both ends.
    """

    y: Tensor
    error: Tensor | None
    slope: Tensor | None
    inside: Inside


class Stages:
    """Increments `h k_i` of a step, kept in place: for solves without gradients.

    One product of a matrix and a vector combines them, whatever their number. Every step overwrites the last one's.

    Args:
        tableau: the method.
        like: a state `(B, n)`.
    """

    def __init__(self, tableau: Tableau, like: Tensor):
        self.shape, self.known = like.shape, weights(tableau, like.dtype, like.device)
        self.table = torch.empty(tableau.stages, like.numel(), dtype=like.dtype, device=like.device)
        self.rows = [row.view(like.shape) for row in self.table.unbind()]
        self.columns = [self.table[:i].t() for i in range(tableau.stages + 1)]

    def put(self, i: int, slope: Tensor, h: Tensor) -> None:
        """Sets the increment of stage `i` from its slope `(B, n)` and the step sizes `(B, 1)`."""
        torch.mul(slope, h, out=self.rows[i])

    def state(self, i: int, y: Tensor) -> Tensor:
        """Where stage `i` evaluates, `(B, n)`."""
        return torch.addmv(y.reshape(-1), self.columns[i], self.known.a[i]).view(self.shape)

    def end(self, y: Tensor) -> Tensor:
        """The state at the end of the step, `(B, n)`."""
        return torch.addmv(y.reshape(-1), self.columns[-1], self.known.b).view(self.shape)

    def error(self) -> Tensor | None:
        """The estimate of the step's error, `(B, n)`; None for a method without one."""
        return None if self.known.e is None else torch.mv(self.columns[-1], self.known.e).view(self.shape)

    def of(self, samples: Tensor) -> Tensor:
        """The increments of some samples, `(s, M, n)`."""
        return self.table.view(-1, *self.shape)[:, samples]


class GraphStages(Stages):
    """Increments as tensors of their own, whose graph a gradient needs; of steps that are known to be good."""

    def __init__(self, tableau: Tableau, like: Tensor):
        self.tableau, self.rows = tableau, []

    def put(self, i: int, slope: Tensor, h: Tensor) -> None:
        """See `Stages.put`."""
        self.rows.append(slope * h)

    def state(self, i: int, y: Tensor) -> Tensor:
        """See `Stages.state`."""
        return self._combine(y, self.tableau.a[i])

    def end(self, y: Tensor) -> Tensor:
        """See `Stages.end`."""
        return self._combine(y, self.tableau.b)

    def _combine(self, y: Tensor, row: tuple[float, ...]) -> Tensor:
        for weight, increment in zip(row, self.rows, strict=True):
            y = y if weight == 0.0 else torch.add(y, increment, alpha=weight)
        return y

    def error(self) -> None:
        """Not wanted."""
        return None

    def of(self, samples: Tensor) -> Tensor:
        """See `Stages.of`."""
        return torch.stack([row[samples] for row in self.rows])


class Inside:
    """The path inside a step, as a polynomial.

    Args:
        tableau: whose interpolant it is.
        stages: the increments of the step.
        field: the vector field, should a slope be missing.
        t: start of the step, `(B,)`.
        h: its size, `(B, 1)`.
        y: the state at its start, `(B, n)`.
        end: the state at its end, `(B, n)`.
        slope: the slope at its end; None where that is not known.
    """

    def __init__(
        self,
        tableau: Tableau,
        stages: Stages,
        field: Field,
        t: Tensor,
        h: Tensor,
        y: Tensor,
        end: Tensor,
        slope: Tensor | None,
    ):
        self.tableau, self.stages, self.field = tableau, stages, field
        self.t, self.h, self.y, self.end, self.slope = t, h, y, end, slope

    def at(self, part: Tensor, samples: Tensor) -> Tensor:
        """States `(M, n)` of these samples `(M,)` at these parts of the step, from 0 to 1, `(M,)`."""
        y, end = self.y[samples], self.end[samples]
        if not transforms.active() and bool((part == 1).all()):
            return end
        part = part.unsqueeze(1).to(y.dtype)
        if self.tableau.interpolant is None:
            inside = self._cubic(part, samples, y, end)
        else:
            rows = weights(self.tableau, y.dtype, y.device).interpolant
            assert rows is not None
            powers = part ** torch.arange(1, rows.shape[1] + 1, device=y.device)
            inside = y + torch.einsum("smn,sd,md->mn", self.stages.of(samples), rows, powers)
        return torch.where(part == 1, end, inside)

    def _cubic(self, part: Tensor, samples: Tensor, y: Tensor, end: Tensor) -> Tensor:
        """Hermite's cubic through values and slopes of both ends."""
        if self.slope is None:
            self.slope = self.field(self.t + self.h.squeeze(1), self.end)
        first, last = self.stages.of(samples)[0], (self.slope * self.h)[samples]
        rest = 1 - part
        return rest * y + part * end + part * rest * (rest * (first - (end - y)) - part * (last - (end - y)))


def explicit_step(
    tableau: Tableau, field: Field, t: Tensor, h: Tensor, y: Tensor, slope: Tensor | None, stages: Stages
) -> Stepped:
    """One step of an explicit method.

    Args:
        tableau: the method.
        field: the vector field.
        t: start, `(B,)`.
        h: sizes, `(B,)`.
        y: states, `(B, n)`.
        slope: the slope there, if it is known.
        stages: where to keep the increments.
    """
    known = weights(tableau, y.dtype, y.device)
    times = torch.addcmul(t, known.c.to(t.dtype).unsqueeze(1), h).unbind()
    size = h.to(y.dtype).unsqueeze(1)
    slope = field(t, y) if slope is None else slope
    stages.put(0, slope, size)
    end, last = y, slope
    for i in range(1, tableau.stages):
        end = stages.state(i, y)
        last = field(times[i], end)
        stages.put(i, last, size)
    same = tableau.first_same_as_last
    end = end if same else stages.end(y)
    last = last if same else None
    return Stepped(end, stages.error(), last, Inside(tableau, stages, field, t, size, y, end, last))


def choose_stages(tableau: Tableau, like: Tensor) -> Stages:
    """Where to keep a step's increments: in place, unless a graph is recorded."""
    return GraphStages(tableau, like) if torch.is_grad_enabled() else Stages(tableau, like)

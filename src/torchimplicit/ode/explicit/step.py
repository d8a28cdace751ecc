"""One step of a Runge-Kutta method, written once for every use: in place without gradients, as a graph with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import perm

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.ode.explicit.tableau import Tableau, weights
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


class Stages:
    """Increments `h k_i` of a step, kept in place: for solves without gradients.

    One product of a matrix and a vector combines them, whatever their number. Every step overwrites the last one's.

    Args:
        tableau: the method.
        like: a state `(B, n)`.
    """

    def __init__(self, tableau: Tableau, like: Tensor):
        self.flat, self.known = like.shape, weights(tableau, like.dtype, like.device)
        self.table = torch.empty(tableau.stages, like.numel(), dtype=like.dtype, device=like.device)
        table = self.table.t()
        self.columns = [table[:, :i] for i in range(1, tableau.stages + 1)]  # of the stages so far
        self.shape = torch.Size()
        self.rows: list[Tensor] = []

    def begin(self, y: Tensor, shape: torch.Size) -> None:
        """A step from states `(B, n)`, whose slopes and stages have this shape."""
        self.y = y.reshape(-1)
        if shape != self.shape or not self.rows:
            self.shape, self.rows = shape, list(self.table.view(len(self.table), *shape).unbind())

    def put(self, i: int, slope: Tensor, h: Tensor) -> None:
        """Sets the increment of stage `i` from its slope and the step sizes, which broadcast against it."""
        torch.mul(slope, h, out=self.rows[i])

    def state(self, i: int) -> Tensor:
        """Where stage `i` evaluates."""
        return torch.addmv(self.y, self.columns[i - 1], self.known.a[i]).view(self.shape)

    def end(self) -> Tensor:
        """The state at the end of the step."""
        return torch.addmv(self.y, self.columns[-1], self.known.b).view(self.shape)

    def error(self) -> Tensor | None:
        """The estimate of the step's error, `(B, n)`; None for a method without one."""
        return None if self.known.e is None else torch.mv(self.columns[-1], self.known.e).view(self.flat)

    def of(self, samples: Tensor) -> Tensor:
        """The increments of some samples, `(s, M, n)`."""
        return self.table.view(-1, *self.flat)[:, samples]


class GraphStages(Stages):
    """Increments as tensors of their own, whose graph a gradient needs; of steps that are known to be good."""

    def __init__(self, tableau: Tableau, like: Tensor):
        self.tableau, self.flat, self.known = tableau, like.shape, weights(tableau, like.dtype, like.device)
        self.find_last: Callable[[], None] | None = None  # the last increment, where only the path inside needs it

    def begin(self, y: Tensor, shape: torch.Size) -> None:
        """See `Stages.begin`."""
        self.y, self.rows = y.reshape(shape), []

    def put(self, i: int, slope: Tensor, h: Tensor) -> None:
        """See `Stages.put`."""
        self.rows.append(slope * h)

    def state(self, i: int) -> Tensor:
        """See `Stages.state`."""
        return self._combine(self.tableau.a[i])

    def end(self) -> Tensor:
        """See `Stages.end`."""
        return self._combine(self.tableau.b)

    def _combine(self, row: tuple[float, ...]) -> Tensor:
        y = self.y
        for weight, increment in zip(row, self.rows, strict=True):
            y = y if weight == 0.0 else torch.add(y, increment, alpha=weight)
        return y

    def error(self) -> None:
        """Not wanted."""
        return None

    def of(self, samples: Tensor) -> Tensor:
        """See `Stages.of`."""
        if self.find_last is not None:
            self.find_last, find = None, self.find_last
            find()
        return torch.stack(self.rows).view(len(self.rows), *self.flat)[:, samples]


class Increments:
    """The increments `h k_i` of a step, ready made.

    Args:
        rows: one for each stage, `(B, n)`.
    """

    def __init__(self, rows: list[Tensor] | tuple[Tensor, ...]):
        self.rows = rows

    def of(self, samples: Tensor) -> Tensor:
        """The increments of some samples, `(s, M, n)`."""
        return torch.stack(self.rows)[:, samples]


class Inside:
    """The path inside a step, as a polynomial.

    Args:
        tableau: whose interpolant it is.
        stages: the increments of the step.
        field: the vector field, should a slope be missing.
        span: of the step.
        h: its size in the state's dtype, `(B, 1)`.
        y: the state at its start, `(B, n)`.
        end: the state at its end, `(B, n)`.
        slope: the slope at its end; None where that is not known.
    """

    def __init__(
        self,
        tableau: Tableau,
        stages: Stages | Increments,
        field: Field,
        span: Span,
        h: Tensor,
        y: Tensor,
        end: Tensor,
        slope: Tensor | None,
    ):
        self.tableau, self.stages, self.field = tableau, stages, field
        self.span, self.h, self.y, self.end, self.slope = span, h, y, end, slope

    def at(self, part: Tensor, samples: Tensor) -> Tensor:
        """States `(M, n)` of these samples `(M,)` at these parts of the step, from 0 to 1, `(M,)`."""
        end = self.end[samples]
        if not transforms.active() and bool((part == 1).all()):
            return end
        return torch.where((part == 1).unsqueeze(1), end, self.polynomial(part, samples))

    def polynomial(self, part: Tensor, samples: Tensor) -> Tensor:
        """As `at`, which is this but for rounding, smooth in `part` at the end too: for derivatives by time."""
        y, part = self.y[samples], part.unsqueeze(1).to(self.y.dtype)
        if self.tableau.interpolant is None:
            return self._cubic(part, samples, y, self.end[samples])
        rows = weights(self.tableau, y.dtype, y.device).interpolant
        assert rows is not None
        # By Horner: products, for powers with a tensor of exponents have no second derivative at zero; and of every
        # sample alone, for a product of matrices may round one sample's by how many there are.
        *lower, highest = rows.unbind(1)
        parts = part * highest
        for row in reversed(lower):
            parts = (parts + row) * part
        return torch.baddbmm(y.unsqueeze(2), self.stages.of(samples).permute(1, 2, 0), parts.unsqueeze(2)).squeeze(2)

    def series(self, part: Tensor, samples: Tensor, order: int) -> Tensor:
        """States and their first derivatives by time up to this order, side by side, `(M, (1 + order) n)`."""
        found = [self.polynomial(part, samples)]  # which finds a missing slope
        if not order:
            return found[0]
        size = self.h[samples]
        size = torch.where(size == 0, 1.0, size)  # of samples that stand still
        terms = self._terms(samples)
        part = part.unsqueeze(1).to(size.dtype)
        for i in range(1, order + 1):
            slope = torch.zeros_like(found[0])
            for degree in range(len(terms), i - 1, -1):
                slope = slope * part + perm(degree, i) * terms[degree - 1]
            found.append(slope / size**i)
        return torch.cat(found, dim=1)

    def _terms(self, samples: Tensor) -> Sequence[Tensor]:
        """What the powers of the part, from the first on, are multiplied with in `polynomial`, `(M, n)` each."""
        if self.tableau.interpolant is not None:
            rows = weights(self.tableau, self.y.dtype, self.y.device).interpolant
            return torch.einsum("smn,sd->dmn", self.stages.of(samples), rows).unbind()
        assert self.slope is not None
        first, last = self.stages.of(samples)[0], (self.slope * self.h)[samples]
        chord = self.end[samples] - self.y[samples]
        return first, 3 * chord - 2 * first - last, first + last - 2 * chord

    def _cubic(self, part: Tensor, samples: Tensor, y: Tensor, end: Tensor) -> Tensor:
        """Hermite's cubic through values and slopes of both ends."""
        if self.slope is None:
            self.slope = self.field(self.span.stop, self.end)
        first, last = self.stages.of(samples)[0], (self.slope * self.h)[samples]
        rest = 1 - part
        return rest * y + part * end + part * rest * (rest * (first - (end - y)) - part * (last - (end - y)))


def explicit_step(
    tableau: Tableau, field: Field, span: Span, y: Tensor, slope: Tensor | None, stages: Stages
) -> Stepped:
    """One step of an explicit method.

    Args:
        tableau: the method.
        field: the vector field.
        span: from when to when.
        y: states, `(B, n)`.
        slope: the slope there, if it is known.
        stages: where to keep the increments.
    """
    slope = field(span.start, y) if slope is None else slope
    times = span.at(stages.known.c.to(span.h.dtype).unsqueeze(1))
    size = span.h.to(y.dtype).unsqueeze(1)
    if field.bare is None:
        rate, shape, scale, clock = field, y.shape, size, times.unbind()
    else:
        rate, shape, time_shape = field.bare.bound, field.bare.shape, field.bare.time_shape
        scale, clock = size.view(time_shape), times.to(y.dtype).view(len(times), *time_shape).unbind()
        field.nfev += tableau.stages - 1
    stages.begin(y, shape)
    stages.put(0, slope.reshape(shape), scale)
    end = last = slope
    same = tableau.first_same_as_last
    for i in range(1, tableau.stages):
        end = stages.state(i)
        if same and i == tableau.stages - 1 and isinstance(stages, GraphStages):
            stages.find_last = partial(_put_last, stages, rate, clock[i], end, scale)
            last = None
        else:
            last = rate(clock[i], end)
            stages.put(i, last, scale)
    end = (end if same else stages.end()).reshape(y.shape)
    slope = last.reshape(y.shape) if same and last is not None else None
    return Stepped(end, stages.error(), slope, Inside(tableau, stages, field, span, size, y, end, slope))


def _put_last(stages: Stages, rate: Callable, t: Tensor, end: Tensor, h: Tensor) -> None:
    stages.put(len(stages.known.c) - 1, rate(t, end), h)


def choose_stages(tableau: Tableau, like: Tensor) -> Stages:
    """Where to keep a step's increments: in place, unless a graph is recorded."""
    return GraphStages(tableau, like) if torch.is_grad_enabled() else Stages(tableau, like)

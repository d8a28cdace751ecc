"""One step of an explicit Runge-Kutta method, in place without gradients, a graph with them; kernels have another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from torchimplicit.ode.explicit.tableau import Row, Tableau, Weights, columns, combine, weights
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import HermiteInterpolant, Increments, Interpolant, PolynomialInterpolant
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


class Stages:
    """Increments `h k_i` of a step, and their sums that the step needs, kept in place: for solves without gradients.

    An increment is added to all the sums that want it once it is known, by one operation that does with every number
    what it would do with it alone. So a sample's sums are the same to the bit, whatever the batch: those of a product
    of matrix and vector may be rounded by how many numbers there are. Every step overwrites the last one's.

    Args:
        tableau: the method.
        like: a state `(B, n)`.
        also: weights of more estimates.
    """

    def __init__(self, tableau: Tableau, like: Tensor, also: tuple[Row, ...] = ()):
        self.tableau, self.also, self.flat = tableau, also, like.shape
        self.known = weights(tableau, like.dtype, like.device)
        self.shape: torch.Size | None = None
        self.rows: Sequence[Tensor] = ()

    def begin(self, y: Tensor, shape: torch.Size) -> None:
        """A step from states `(B, n)`, whose slopes and stages have this shape."""
        self.y = shaped(y, shape)
        if shape != self.shape:
            self.shape, self.table = shape, y.new_empty(self.tableau.stages, *shape)
            self.rows = self.table.unbind()
            self.weights = columns(self.tableau, self.also, len(shape), y.dtype, y.device)
            self.place_sums()

    def place_sums(self) -> None:
        """Makes room for the sums."""
        assert self.shape is not None
        sums, points = self.table.new_empty(self.weights.sums, *self.shape), len(self.weights.points)
        self.points, self.estimates, every = sums[:points], sums[points:], sums.unbind()
        self.states, self.errors = every[:points], every[points:]
        # Stage i, from the second on, has a part in those that the stages before it have not completed.
        self.wanting = [sums[i:] if i < points else self.estimates for i in range(1, self.tableau.stages)]

    def put(self, i: int, slope: Tensor, h: Tensor) -> None:
        """Sets the increment of stage `i` from its slope and the step sizes, which broadcast against it."""
        check_slope(slope, self.shape)
        row = torch.mul(slope, h, out=self.rows[i])
        if i > 0:
            self.wanting[i - 1].addcmul_(self.weights.later[i - 1], row)
            return
        torch.addcmul(self.y, self.weights.points, row, out=self.points)
        if self.errors:
            torch.mul(self.weights.estimates, row, out=self.estimates)

    def state(self, i: int) -> Tensor:
        """Where stage `i` evaluates."""
        return self.states[i - 1]

    def ask(self, evaluate: Callable[[Tensor, Tensor], Tensor], t: Tensor, state: Tensor) -> Tensor:
        """The slope of a stage, where it evaluates."""
        return evaluate(t, state)

    def end(self) -> Tensor:
        """The state at the end of the step; nobody writes to it any more."""
        return self.states[-1].clone()

    def error(self, which: int = 0) -> Tensor | None:
        """An estimate of the step's error, `(B, n)`; None for a method without one."""
        return shaped(self.errors[which], self.flat) if self.errors else None

    @property
    def first(self) -> Tensor:
        """The increment of the first stage."""
        return self.rows[0]

    def of(self, samples: Tensor) -> Tensor:
        """The increments of some samples, `(s, M, n)`."""
        return self.table.view(-1, *self.flat)[:, samples]


def shaped(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A tensor in a shape, as it is where it has it already, which spares a call.

    Not in a graph: what comes to it is added up there, and then to what else comes, whoever has outputs in the step.
    """
    plain = tensor.shape == shape and not (tensor.requires_grad and torch.is_grad_enabled())
    return tensor if plain else tensor.reshape(shape)


def check_slope(slope: Tensor, shape: torch.Size | None) -> None:
    """Refuses what a field that gave the state's shape at first gives later: it would broadcast in silence.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    if isinstance(slope, Tensor) and slope.shape == shape:
        return
    if not isinstance(slope, Tensor):
        raise TypeError(f"the function returned a {type(slope).__name__}, expected a tensor like the state's")
    raise ValueError(
        f"the function returned shape {tuple(slope.shape)}, expected the state's shape {tuple(shape or ())}, as it did "
        "at first; try value.expand_as(y)"
    )


class GraphStages(Stages):
    """Increments as tensors of their own, whose graph a gradient needs; of steps that are known to be good."""

    def __init__(self, tableau: Tableau, like: Tensor):
        self.tableau, self.flat, self.known = tableau, like.shape, weights(tableau, like.dtype, like.device)
        self.find_last: Callable[[], None] | None = None  # the last increment, where only the path inside needs it
        self.increments: list[Tensor] = []

    @property
    def first(self) -> Tensor:
        """See `Stages.first`."""
        return self.increments[0]

    def begin(self, y: Tensor, shape: torch.Size) -> None:
        """See `Stages.begin`."""
        self.y, self.increments, self.shape = shaped(y, shape), [], shape

    def put(self, i: int, slope: Tensor, h: Tensor) -> None:
        """See `Stages.put`."""
        check_slope(slope, self.shape)
        self.increments.append(slope * h)

    def state(self, i: int) -> Tensor:
        """See `Stages.state`."""
        return combine(self.y, self.tableau.a[i], self.increments)

    def end(self) -> Tensor:
        """See `Stages.end`."""
        return combine(self.y, self.tableau.b[: len(self.increments)], self.increments)

    def error(self, which: int = 0) -> None:
        """Not wanted."""
        return None

    def of(self, samples: Tensor) -> Tensor:
        """See `Stages.of`."""
        if self.find_last is not None:
            self.find_last, find = None, self.find_last
            find()
        return torch.stack(self.increments).view(-1, *self.flat)[:, samples]


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
    times = span.at(stages.known.column.to(span.h.dtype))
    h_state = span.h.to(y.dtype).unsqueeze(1)
    if field.raw is None:
        evaluate, shape, scale, clock = field, y.shape, h_state, times.unbind()
    else:
        evaluate, shape, time_shape = field.raw.bound, field.raw.shape, field.raw.time_shape
        scale = h_state if len(time_shape) == 2 else h_state.view(time_shape)
        clock = times.to(y.dtype).view(len(times), *time_shape).unbind()
        field.nfev += tableau.stages - 1
    stages.begin(y, shape)
    stages.put(0, shaped(slope, shape), scale)
    end = last = slope
    same = tableau.first_same_as_last
    for i in range(1, tableau.stages):
        closes = same and i == tableau.stages - 1
        end = stages.end() if closes else stages.state(i)
        if closes and isinstance(stages, GraphStages):
            stages.find_last = partial(_put_last, stages, evaluate, clock[i], end, scale)
            last = None
        else:
            last = stages.ask(evaluate, clock[i], end)
            stages.put(i, last, scale)
    end = shaped(end if same else stages.end(), y.shape)
    slope = shaped(last, y.shape) if same and last is not None else None
    inside = interpolant(stages.known, stages, stages.first, field, span, h_state, y, end, slope)
    return Stepped(end, stages.error(), slope, inside)


def interpolant(
    known: Weights, increments: Increments, first: Tensor, field: Field, span: Span, h: Tensor, y: Tensor, end: Tensor,
    slope: Tensor | None,
) -> Interpolant:  # fmt: skip
    """The path inside a step: by the method's own interpolant, Hermite's cubic where it has none.

    Args:
        known: the method.
        increments: `h k_i` of its stages.
        first: that of the first one.
        field: the vector field.
        span: from when to when.
        h: its size in the state's dtype, `(B, 1)`.
        y: states, `(B, n)`.
        end: states at the end.
        slope: the slope there; None where that is not known.
    """
    if known.interpolant is None:
        return HermiteInterpolant(field, span, h, y, end, first, slope)
    return PolynomialInterpolant(known.interpolant, increments, h, y, end)


def _put_last(stages: Stages, evaluate: Callable, t: Tensor, end: Tensor, h: Tensor) -> None:
    stages.put(len(stages.known.c) - 1, evaluate(t, end), h)


def stages_of(tableau: Tableau, like: Tensor, graph: bool, also: tuple[Row, ...] = ()) -> Callable[[], Stages]:
    """Gives where to keep a step's increments: always the same in place, or new tensors where a graph is recorded."""
    if graph:
        return partial(GraphStages, tableau, like)
    kept = Stages(tableau, like, also)
    return lambda: kept

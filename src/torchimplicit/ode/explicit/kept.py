r"""Steps whose evaluations keep their graphs, and the way back through them.

With the increments $K_i = h k_i$ of a step and the gradient $\lambda$ of the state after it, those of increments are
$\bar K_i = b_i \lambda + \sum_{j>i} a_{ji} v_j$, where $v_j = h (\partial f / \partial y)^\top \bar K_j$ is that of
the state of stage $j$; the gradient of the state before the step is $\lambda + \sum_i v_i$. So an evaluation costs its
vector-Jacobian product and no more, and what a step adds up costs an operation for each stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.core import transforms
from torchimplicit.ode.explicit.step import Stages, explicit_step, shaped
from torchimplicit.ode.explicit.tableau import Tableau, combine, weights
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.graphs import Graphs, Within
from torchimplicit.path.interpolant import PolynomialInterpolant, Rows
from torchimplicit.path.solver import Stepper
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


@dataclass(frozen=True)
class KeptStep:
    """The graphs of one step; see `StepGraph`.

    Attributes:
        tableau: the method.
        flat: shape of the states, `(B, n)`.
        shape: of slopes and stages as the function sees them.
        h: the step sizes, which broadcast against that.
        states: where every stage evaluated, leaves.
        slopes: what it found there, as the function gave it.
        mixed: see `StepGraph`.
    """

    tableau: Tableau
    flat: torch.Size
    shape: torch.Size
    h: Tensor
    states: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)
    mixed: bool = False

    @property
    def y(self) -> Tensor:
        """See `StepGraph.y`."""
        return shaped(self.states[0].detach(), self.flat)

    def only(self, moved: Tensor) -> KeptStep:
        """See `StepGraph.only`: the others' step is of size zero."""
        return replace(self, h=torch.where(moved.view(self.h.shape), self.h, 0.0), mixed=True)

    @property
    def complete(self) -> bool:
        """See `StepGraph.complete`."""
        return len(self.slopes) == self.tableau.stages

    @property
    def count(self) -> int:
        """See `StepGraph.count`."""
        return 2 * self.tableau.stages

    def tensors(self) -> list[Tensor]:
        """See `StepGraph.tensors`."""
        return [*self.states, *self.slopes]

    def of(self, tensors: Sequence[Tensor]) -> KeptStep:
        """See `StepGraph.of`."""
        half = len(tensors) // 2
        return replace(self, states=list(tensors[:half]), slopes=list(tensors[half:]))

    def pull(self, cotangent: Tensor, within: Within | None, wanted: Sequence[Tensor]) -> tuple[Tensor, Gradients]:
        """See `StepGraph.pull`."""
        inside = None if within is None else self._pull_inside(within)
        arriving = cotangent if inside is None else cotangent + inside[1]
        known = back(self.tableau, len(self.shape), cotangent.dtype, cotangent.device)
        table = known.end * shaped(arriving, self.shape)  # the state before the step, and behind it the increments
        if inside is not None:
            table[0] += inside[0].view(self.shape)
            table[1:] += inside[2].view(-1, *self.shape)
        rows = table.unbind()
        totals: Gradients = [None] * len(wanted)
        for i in reversed(range(self.tableau.stages)):
            state, slope = self.states[i], self.slopes[i]
            if not slope.requires_grad or (inside is None and not known.wants[i]):
                continue
            arrived = shaped(rows[i + 1] * self.h, slope.shape)
            by_state, *found = transforms.vjps_of_graph((slope,), (state, *wanted), (arrived,), keep=True)
            if by_state is not None:
                table[: i + 1].addcmul_(known.stages[i], shaped(by_state, self.shape))
            totals = added(totals, found)
        return shaped(rows[0], self.flat), totals

    def _pull_inside(self, within: Within) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of outputs by the states before and after the step, and by its increments, `(s, B, n)`."""
        y = self.y
        table = torch.stack([(slope.detach().reshape(self.shape) * self.h) for slope in self.slopes]).view(
            -1, *self.flat
        )
        known = weights(self.tableau, y.dtype, y.device)
        end = combine(y, self.tableau.b, table.unbind())
        leaves = [each.detach().requires_grad_() for each in (y, end, table)]
        assert known.interpolant is not None
        with torch.enable_grad():
            y, end, table = leaves
            path = PolynomialInterpolant(known.interpolant, Rows(table.unbind()), self.h.reshape(-1, 1), y, end)
            values = path.at(within.theta, within.samples)
        found = torch.autograd.grad(values, leaves, within.grad, allow_unused=True)
        before, after, by = (
            torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)
        )
        return before, after, by


def added(totals: Gradients, more: Sequence[Tensor | None]) -> Gradients:
    """As `summed`, by one operation where all are there."""
    if not totals or any(each is None for each in (*totals, *more)):
        return summed(totals, more)
    return list(torch._foreach_add(totals, list(more)))  # type: ignore[arg-type]


class Back(NamedTuple):
    """Weights of the way back through a step for the state before it and the increments, in front of its dimensions.

    Attributes:
        end: of the gradient of the state after it.
        stages: of that of every stage's state, for the increments before it.
        wants: whether anything comes to a stage's increment.
    """

    end: Tensor
    stages: tuple[Tensor, ...]
    wants: tuple[bool, ...]


@lru_cache(maxsize=64)
def back(tableau: Tableau, dims: int, dtype: torch.dtype, device: torch.device) -> Back:
    """The weights of a method for states of so many dimensions, in a dtype, on a device."""
    columns = ((1.0, *tableau.b), *((1.0, *row) for row in tableau.a))
    made = [torch.tensor(column, dtype=dtype, device=device).view(-1, *(1,) * dims) for column in columns]
    end, *stages = map(transforms.unwrapped, made)
    # The last stage of a method whose slopes it hands on has no part in the step that it ends.
    wants = tuple(b != 0 or any(row[i] for row in tableau.a[i + 1 :]) for i, b in enumerate(tableau.b))
    return Back(end, tuple(stages), wants)


class KeptStages(Stages):
    """Increments in place as `Stages` has them, of evaluations whose graphs are kept; every step has sums of its own.

    Attributes:
        step: the graphs of the step that is being made.
    """

    step: KeptStep

    def begin(self, y: Tensor, shape: torch.Size) -> None:
        """See `Stages.begin`."""
        known = shape == self.shape
        super().begin(y, shape)
        if known:
            self.place_sums()

    def put(self, i: int, slope: Tensor, h: Tensor) -> None:
        """See `Stages.put`."""
        if i == 0:
            assert self.shape is not None
            self.step = KeptStep(self.tableau, self.flat, self.shape, h)
        else:
            self.step.slopes.append(slope)
        super().put(i, slope, h)

    def ask(self, evaluate: Callable[[Tensor, Tensor], Tensor], t: Tensor, state: Tensor) -> Tensor:
        """See `Stages.ask`."""
        # `data`, for sums beside this one are still written to; to itself nobody writes any more.
        leaf = state.data.requires_grad_()
        self.step.states.append(leaf)
        return transforms.recording(evaluate, t, leaf)

    def end(self) -> Tensor:
        """See `Stages.end`."""
        return self.states[-1]


def keeping(tableau: Tableau, like: Tensor, graphs: Graphs) -> Stepper:
    """What makes steps and keeps their graphs; see `PathSolver.keeper`."""
    stages = KeptStages(tableau, like)

    def step(field: Field, span: Span, y: Tensor, slope: Tensor | None) -> Stepped:
        if slope is None:
            slope = graphs.ask(field, span.start, y)
        else:
            graphs.ask_again(field, span.start, y, slope)
        done, known, made = explicit_step(tableau, field, span, y, slope, stages), graphs.behind(slope), stages.step
        if done.slope is not None:
            graphs.see(done.slope, made.slopes[-1], made.states[-1])
        if known is not None:
            made.slopes.insert(0, known[0])
            made.states.insert(0, known[1])
        return done._replace(graph=made)

    return step

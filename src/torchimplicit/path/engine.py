"""How the steps of a solve are made, forward and for gradients: chosen once, by who calls, and handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.adjoint.quarantine import all_finite
from torchimplicit.core import transforms
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.graphs import Graphs, Within
from torchimplicit.path.loop import StepLoop
from torchimplicit.path.query import Query
from torchimplicit.path.record import Outputs, Phase, Step
from torchimplicit.path.remake import make_step
from torchimplicit.path.report import PathReport
from torchimplicit.path.solver import PathSolver, Stepper

T = TypeVar("T")

# All steps, in a graph where gradients are recorded: of the field, the start `(B, n)`, and a record where that is
# wanted, the outputs `(T, B, n)`, and how many steps there were; None where a sample does not arrive.
Foreseen = Callable[[Field, Tensor, Phase | None], tuple[Tensor, int] | None]


@dataclass(frozen=True)
class PhaseBackward:
    """What the backward pass through one phase needs.

    Attributes:
        solver: the method.
        field: the vector field, of the tensors in `wanted`.
        phase: the record of it.
        retrace: gives the steps, last first, each with the times asked for within it and the state before it; anew at
            every call.
        query: what is asked of the path.
        ts: its times, `(T, B)`; require grad where they want a gradient.
        wanted: the leaves that want a gradient, the times among them.
        grad: gradient of what is asked for, `(T, B, (1 + order) n)`.
        meet: is told of a step that was made again: the states before it, those that it has led to, those that it once
            led to, and the step that goes on from there, or which samples they are of.
        known: the outputs `(T, B, n)`, of a path that is `short`; None of others, whose steps meet each other.
    """

    solver: PathSolver
    field: Field
    phase: Phase
    retrace: Callable[[], Iterator[tuple[Step, Outputs | None, Tensor]]]
    query: Query
    ts: Tensor
    wanted: Sequence[Tensor]
    grad: Tensor
    meet: Callable[..., None]
    known: Tensor | None = None

    def inside(self, step: Step, outputs: Outputs) -> Tensor:
        """Which part of the step each output within it is at, `(M,)`."""
        places, samples, span = outputs.places, outputs.samples, step.span
        return (self.ts[places, samples] - span.start[samples]) / span.h[samples]

    def arriving(self, step: Step, outputs: Outputs | None, cotangent: Tensor) -> tuple[Tensor, Within | None]:
        """The gradient of the states after a step, outputs there included, and what comes to those within it."""
        if outputs is None:
            return cotangent, None
        places, samples, last = outputs.places, outputs.samples, outputs.last
        if last is not None:
            grad = self.grad[last]
            whole = outputs.everybody
            return cotangent + grad if whole else cotangent.index_add(0, samples, grad[samples]), None
        theta = self.inside(step, outputs)
        grad = self.grad[places, samples]
        if bool((theta == 1).all()):
            return cotangent.index_put((samples,), grad, accumulate=True), None
        return cotangent, Within(theta, samples, grad)

    def meet_outputs(self, outputs: Outputs, before: Tensor, values: Tensor) -> None:
        """Holds outputs within the only step, `(M, n)`, against what they once were; `before` it were `(B, n)`."""
        if self.known is not None:
            places, samples = outputs.places, outputs.samples
            self.meet(before[samples], values, self.known[places, samples], samples=samples)


class Engine:
    """Makes steps one at a time, each by the host.

    Attributes:
        looks: whether it looks at a field once a solve.
        pulls: whether its steps have no graph, for it gives the gradients of many at a time.
    """

    looks: bool = False
    pulls: bool = False
    keeps: ClassVar[bool] = True  # whether its loop can keep the graphs of steps
    in_a_graph: ClassVar[int] = 1  # steps that are differentiated at a time

    @property
    def plain(self) -> Engine:
        """What makes the same steps without kernels."""
        return self

    def forward(self, solve: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """Solves.

        Args:
            solve: a whole solve by an engine's loops, of the explicit tensors.
            tensors: these.
        """
        return solve(self, tensors)

    def look(self, solver: PathSolver, field: Field, y0: Tensor, end: Tensor, ts: Tensor, report: PathReport) -> None:
        """Looks at a field once a solve, if it `looks`, and tells the report what it saw.

        Args:
            solver: the method.
            field: bound, beside the solve.
            y0: the start, `(B, n)`.
            end: where the solve has ended, `(B, n)`.
            ts: times, `(T, B)`.
            report: of the solve.
        """

    def ahead(self, solver: PathSolver, ts: Tensor) -> Foreseen | None:
        """What makes all steps, should it be known before a solve which they are; None where it is not.

        Args:
            solver: the method.
            ts: times, `(T, B)`.
        """
        return None

    def loop(self, *args: Any) -> StepLoop:
        """The loop over the steps of a phase; arguments as those of `StepLoop`."""
        return StepLoop(*args)

    def _backward_by_graphs(self, phase: PhaseBackward, cotangent: Tensor, keeper: Stepper) -> tuple[Tensor, Gradients]:
        """The same by graphs that are kept, of steps that are made again, too: no bit depends on which these are."""
        totals: Gradients = [None] * len(phase.wanted)
        met, later = False, None
        for step, outputs, y in phase.retrace():
            graph, arriving = step.graph, phase.arriving(step, outputs, cotangent)
            pulled = None if graph is None else graph.pull(*arriving, phase.wanted)
            # Where a sample never was, its derivative may be infinite, and that times zero is NaN.
            if pulled is None or (graph is not None and graph.mixed and not all_finite([pulled[0], *pulled[1]])):
                with torch.no_grad():
                    done = keeper(phase.field, step.span, y, None)
                graph = done.graph
                if outputs is not None:
                    phase.meet_outputs(outputs, y, done.inside.at(phase.inside(step, outputs), outputs.samples))
                if later is not None and not met:
                    phase.meet(y, done.y.detach(), later[2], later[0])
                    met = True
                assert graph is not None
                pulled = graph.pull(*arriving, phase.wanted)
            cotangent, found = pulled
            totals, later = summed(totals, found), (step, outputs, y)
        return cotangent, totals

    def backward(self, phase: PhaseBackward, cotangent: Tensor) -> tuple[Tensor, Gradients]:
        """The gradients of the states before a phase, from that after it, `(B, n)`, and of the leaves."""
        totals: Gradients = [None] * len(phase.wanted)
        if phase.phase.leaves is not None:
            return self._backward_by_graphs(phase, cotangent, phase.solver.keeper(cotangent, Graphs(0)))
        stepper, met, later = phase.solver.stepper(cotangent, graph=True), False, None
        # Each graph is differentiated before the next one is made: the memory is that of one, or a few steps.
        for _, group in groupby(phase.retrace(), lambda each: each[0].number // self.in_a_graph):
            some = list(group)
            with torch.enable_grad():
                y = leaf = some[-1][2].detach().requires_grad_()
                ends, cotangents, states = [], [], []
                for step, outputs, _ in reversed(some):
                    y, values = make_step(
                        stepper, phase.field, step, y, phase.ts, phase.query, outputs, phase.ts.requires_grad,
                        phase.solver.stops_at_outputs,
                    )  # fmt: skip
                    states.append(y)
                    if outputs is not None and values is not None:
                        phase.meet_outputs(outputs, leaf.detach(), values.detach())
                        ends.append(values)
                        cotangents.append(phase.grad[outputs.places, outputs.samples])
            behind, later = some[-2] if len(some) > 1 else later, some[-1]
            if behind is not None and not met:  # one step will do to tell a function that is another one now
                phase.meet(leaf.detach(), states[0].detach(), behind[2], behind[0])
                met = True
            moved, *found = transforms.vjps_of_graph([y, *ends], [leaf, *phase.wanted], [cotangent, *cotangents])
            assert moved is not None
            cotangent = moved
            totals = summed(totals, found)
        return cotangent, totals

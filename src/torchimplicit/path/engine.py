"""How the steps of a walk are made, forward and for gradients: chosen once, by who calls, and handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.loop import Walk
from torchimplicit.path.query import Query
from torchimplicit.path.record import Outputs, Step
from torchimplicit.path.remake import make_step
from torchimplicit.path.solver import PathSolver

T = TypeVar("T")


@dataclass(frozen=True)
class Leg:
    """What the backward pass through one phase needs.

    Attributes:
        solver: the method.
        field: the vector field, of the tensors in `wanted`.
        retrace: gives the steps, last first, each with the times asked for within it and the state before it; anew at
            every call.
        query: what is asked of the path.
        ts: its times, `(T, B)`; require grad where they want a gradient.
        wanted: the leaves that want a gradient, the times among them.
        grad: gradient of what is asked for, `(T, B, (1 + order) n)`.
    """

    solver: PathSolver
    field: Field
    retrace: Callable[[], Iterator[tuple[Step, Outputs | None, Tensor]]]
    query: Query
    ts: Tensor
    wanted: Sequence[Tensor]
    grad: Tensor


class Engine:
    """Makes steps one at a time, each by the host."""

    def forward(self, walk: Callable[[Engine, Sequence[Tensor]], T], tensors: Sequence[Tensor]) -> T:
        """Walks.

        Args:
            walk: a whole walk by an engine's loops, of the explicit tensors.
            tensors: these.
        """
        return walk(self, tensors)

    def loop(self, *args: Any) -> Walk:
        """The loop over the steps of a phase; arguments as those of `Walk`."""
        return Walk(*args)

    def backward(self, leg: Leg, flow: Tensor) -> tuple[Tensor, Gradients]:
        """The gradients of the states before a phase, from that after it, `(B, n)`, and of the leaves."""
        totals: Gradients = [None] * len(leg.wanted)
        stepper = leg.solver.stepper(flow, graph=True)
        for step, outputs, y in leg.retrace():
            with torch.enable_grad():
                leaf = y.detach().requires_grad_()
                end, values = make_step(
                    stepper, leg.field, step, leaf, leg.ts, leg.query, outputs, leg.ts.requires_grad
                )
            ends, flows = [end], [flow]
            if outputs is not None and values is not None:
                ends, flows = [end, values], [flow, leg.grad[outputs.places, outputs.samples]]
            flow, *found = torch.autograd.grad(ends, [leaf, *leg.wanted], flows, allow_unused=True)
            totals = summed(totals, found)
        return flow, totals

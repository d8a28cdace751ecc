"""Steps taken back one by one, each with its gradient: of methods that have an inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchimplicit.adjoint.products import Gradients, summed
from torchimplicit.core import transforms
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Step
from torchimplicit.path.remake import tied
from torchimplicit.path.span import Span

Mend = Callable[[Tensor], Tensor]  # of states found on the way back, (B, n)
Pair = Sequence[Tensor]  # two, (B, n) each


class Undo:
    """Takes back the steps of a phase, last first, and their gradients with them.

    What the field says on the way back to a state is what it said on the way there: one evaluation, with its graph,
    gives the state before and the gradient.

    Args:
        field: the vector field, of the tensors in `wanted`.
        ts: output times, `(T, B)`; require grad where they want a gradient.
        wanted: the leaves that want a gradient, the times among them.
        mend: is shown the states that fields are asked at; puts those that have left every bound back.

    Attributes:
        totals: the gradients of `wanted` so far.
    """

    def __init__(self, field: Field, ts: Tensor, wanted: Sequence[Tensor], mend: Mend):
        self.field, self.ts, self.wanted, self.mend = field, ts, list(wanted), mend
        self.totals: Gradients = [None] * len(self.wanted)

    def step(self, step: Step, end: Pair, cotangent: Pair) -> tuple[Pair, Pair]:
        """The states before a step from those after it, and the gradients there from those here.

        Samples that the step does not move have a span of length zero, and stay.
        """
        raise NotImplementedError

    def finish(self, cotangent: Pair) -> Pair:
        """The gradients of the states before all steps, from what the first of them has left."""
        return cotangent

    def span(self, step: Step) -> Span:
        """What a step leads through, with its gradient where times have one."""
        if not self.ts.requires_grad:
            return step.span
        with torch.enable_grad():
            start, stop = (tied(each, self.ts, lands=True) for each in (step.start, step.stop))
            return Span.of(start, stop, step.number)

    def pull(self, found: Sequence[Tensor], leaf: Tensor | None, grads: Sequence[Tensor]) -> Tensor | float:
        """Adds to the totals; returns the gradient of a leaf, `(B, n)`, by what was found there and its gradients."""
        pairs = [each for each in zip(found, grads, strict=True) if each[0].requires_grad]
        if not pairs:
            return 0.0
        inputs = self.wanted if leaf is None else [leaf, *self.wanted]
        if not inputs:
            return 0.0
        values, grads = zip(*pairs, strict=True)
        pulled = list(transforms.vjps_of_graph(values, inputs, grads))
        own = None if leaf is None else pulled.pop(0)
        self.totals = summed(self.totals, pulled)
        return 0.0 if own is None else own

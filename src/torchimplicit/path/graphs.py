"""Graphs of steps that the backward pass goes through as they are, kept while they take little memory.

Where there is none, a step is made again for its gradient, at the price of its evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from torchimplicit.adjoint.products import Gradients
from torchimplicit.core import transforms
from torchimplicit.path.field.dynamics import Field


class Within(NamedTuple):
    """Gradients that come to outputs within a step.

    Attributes:
        theta: which part of the step each is at, `(M,)`.
        samples: of which sample each is, `(M,)`.
        grad: what comes to it, `(M, n)`.
    """

    theta: Tensor
    samples: Tensor
    grad: Tensor


class StepGraph(Protocol):
    """The graphs of the evaluations in one step, of all samples.

    Attributes:
        y: the states before it, `(B, n)`.
        mixed: whether some sample has rejected it: its evaluations lie where that never was.
    """

    y: Tensor
    mixed: bool

    def tensors(self) -> list[Tensor]:
        """What leads to the graphs, and must be kept as autograd keeps what it saves."""
        ...

    def of(self, tensors: Sequence[Tensor]) -> Self:
        """The same with these in the places of `tensors`; of none, what can be kept for ever."""
        ...

    def only(self, moved: Tensor) -> Self:
        """The same where but some samples move, `(B,)`, and the others stay where they are."""
        ...

    @property
    def complete(self) -> bool:
        """Whether there is one for every evaluation, the first slope's included, which was found before the step."""
        ...

    @property
    def count(self) -> int:
        """How many `tensors` there are."""
        ...

    def pull(self, cotangent: Tensor, within: Within | None, wanted: Sequence[Tensor]) -> tuple[Tensor, Gradients]:
        """The gradients of the states before the step and of leaves.

        Args:
            cotangent: of the states after it, `(B, n)`.
            within: of outputs within it; None for none.
            wanted: the leaves.
        """
        ...


class Graphs:
    """What one solve keeps of them.

    Args:
        budget: bytes that they may take, by what the first evaluation saves.

    Attributes:
        leaves: explicit tensors that the graphs of a phase end at.
        kept: how many steps' graphs are.
        full: whether there is no room for another.
        known: a slope, the same with its graph, and the state of which it is: where the next step begins.
    """

    def __init__(self, budget: int):
        self.left, self.kept, self.full = budget, 0, False
        self.leaves: list[Tensor] = []
        self._size: int | None = None
        self.known: tuple[Tensor, Tensor, Tensor] | None = None
        self._before: tuple[Tensor, Tensor, Tensor] | None = None

    def place(self, tensors: Sequence[Tensor], whole: Sequence[Tensor]) -> list[Tensor]:
        """Leaves of a phase for tensors, of all samples or of some; those that are for all stay the same."""
        last = self.leaves or [None] * len(whole)
        self.leaves = [
            leaf if leaf is not None and one is each else one.detach().requires_grad_(each.requires_grad)
            for leaf, one, each in zip(last, tensors, whole, strict=True)
        ]
        return self.leaves

    def ask(self, field: Field, t: Tensor, y: Tensor) -> Tensor:
        """The slope at times `(B,)` and states `(B, n)`, with its graph; the first one tells how much graphs take."""
        leaf = y.detach().requires_grad_()
        if self._size is None:
            found: dict[Any, int] = {}
            with saved_tensors_hooks(lambda tensor: _note(found, tensor), lambda tensor: tensor):
                slope = transforms.recording(field, t, leaf)
            for given in (*self.leaves, leaf):  # these are there anyway
                found.pop(_place(given), None)
            self._size = y.nbytes + sum(found.values()) // 2  # of a state and of a slope with its graph, in the mean
        else:
            slope = transforms.recording(field, t, leaf)
        self.see(slope, slope, leaf)
        return slope

    def ask_again(self, field: Field, t: Tensor, y: Tensor, slope: Tensor) -> None:
        """Asks for the graph of a slope that is known, should it have none: behind a step that some sample rejected.

        Behind one that all reject it is the one before.
        """
        if self._before is not None and self._before[0] is slope:
            self.known = self._before
        if self.behind(slope) is None:
            self.ask(field, t, y)
            assert self.known is not None
            self.known = slope, *self.known[1:]

    def see(self, slope: Tensor, graph: Tensor, state: Tensor) -> None:
        """Remembers of which state a slope is, and the same with its graph, for the step that begins there."""
        self._before, self.known = self.known, (slope, graph, state)

    def behind(self, slope: Tensor) -> tuple[Tensor, Tensor] | None:
        """A slope with its graph, and the state of which it is; None where they are not known."""
        return self.known[1:] if self.known is not None and self.known[0] is slope else None

    def admit(self, graph: StepGraph | None) -> StepGraph | None:
        """The graph of an accepted step, if there is room for it."""
        if graph is None or not graph.complete or self._size is None:
            return None
        self.left -= self._size * graph.count
        self.full = self.left < 0
        self.kept += not self.full
        return None if self.full else graph


def _place(tensor: Tensor) -> tuple[Any, int]:
    """Where a tensor's numbers lie."""
    return tensor.device, tensor.untyped_storage().data_ptr()


def _note(found: dict[Any, int], tensor: Tensor) -> Tensor:
    with suppress(RuntimeError):  # wrappers of transforms within the field have no place
        if tensor.layout is torch.strided:
            found[_place(tensor)] = tensor.untyped_storage().nbytes()
    return tensor

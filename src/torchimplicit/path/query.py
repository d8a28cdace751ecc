"""Times at which a recorded path is evaluated, sorted into its steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.path.record import Outputs, Path

ByStep = dict[int, Outputs]  # the times that lie within a step, by its number


@dataclass(frozen=True)
class Query:
    """What is asked of a recorded path.

    Attributes:
        outputs: for each phase, the times within its steps.
        held: times that no step reached, where the value is the last state; None for none.
        given: how many of the times, the first ones, are those that the solve was for; None for all, and then the
            values are those that the solve gave.
        order: how many derivatives by time are asked for beside the state.
        values_only: places of times below this one carry none all the same; zeros stand in their place.
    """

    outputs: list[ByStep]
    held: Outputs | None
    given: int | None = None
    order: int = 0
    values_only: int = 0

    @classmethod
    def of_outputs(cls, path: Path) -> Query:
        """The outputs of the solve itself."""
        return cls([phase.outputs for phase in path.phases], path.held)

    @classmethod
    def at(cls, path: Path, ts: Tensor, at: Tensor, order: int = 0, values_only: int = 0) -> Query:
        """Other times, whose places come after those of the solve.

        Args:
            path: the record.
            ts: the times that the solve was for, `(T, B)`.
            at: the others, `(K, B)`, in any order.
            order: how many derivatives.
            values_only: how many of the others, the first ones, carry none.
        """
        missing, found = torch.ones_like(at, dtype=torch.bool), []
        for phase in path.phases:
            some = slice(None) if phase.rows is None else phase.rows
            stops = torch.stack([step.stop for step in phase.steps]).cummax(0).values.T.contiguous()
            keys, first = at[:, some].T.contiguous(), ts[0, some].unsqueeze(1).contiguous()
            begin = phase.steps[0].start.unsqueeze(1)
            early = keys <= first  # these lie in the first step that moves
            number = torch.searchsorted(stops, keys)
            number = torch.where(early, torch.searchsorted(stops, first, right=True), number)
            inside = (number < len(phase.steps)) & ((keys > begin) | (early & (begin == first)))
            missing[:, some] &= ~inside.T
            found.append(_by_step(number, inside, len(ts)))
        places, samples = torch.nonzero(missing, as_tuple=True)
        return cls(found, Outputs(samples, places + len(ts)), len(ts), order, len(ts) + values_only)


def _by_step(number: Tensor, inside: Tensor, given: int) -> ByStep:
    """Which times lie in which step, from the numbers of the steps, `(M, K)`, as far as they are inside of one."""
    samples, places = torch.nonzero(inside, as_tuple=True)
    numbers, order = number[samples, places].sort()
    samples, places = samples[order], places[order] + given
    which, counts = torch.unique_consecutive(numbers, return_counts=True)
    groups = zip(samples.split(counts.tolist()), places.split(counts.tolist()), strict=True)
    return {i: Outputs(*each) for i, each in zip(which.tolist(), groups, strict=False)}

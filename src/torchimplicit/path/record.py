"""What is kept of a solve: which steps each sample took, which outputs lie in them, and some of the states on the way.

The steps are times, two numbers a sample; with them any stretch of the path can be made again, bit by bit, from a
state before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.path.graphs import StepGraph
from torchimplicit.path.span import Span


@dataclass(frozen=True)
class Outputs:
    """The output times that lie within a step.

    Attributes:
        samples: of which sample each is, `(M,)`, counted among the samples of its phase.
        places: which of the output times it is, `(M,)`.
        last: the same, where it is one for all, at the very end of the step; else None.
        everybody: whether the samples are all of the phase, in turn.
    """

    samples: Tensor
    places: Tensor
    last: int | None = None
    everybody: bool = False


class Step(NamedTuple):
    """One step of all samples of a phase; those that did not move have a size of zero.

    Attributes:
        start: times before it, `(B,)`.
        stop: times after it, `(B,)`.
        all_move: whether every sample moves.
        outputs: the output times within it; None for none.
        number: which of the steps it is, from the start of the path.
        h: its size, `(B,)`, where that is at hand.
        graph: of its evaluations, where that is kept.
    """

    start: Tensor
    stop: Tensor
    all_move: bool
    outputs: Outputs | None = None
    number: int = 0
    h: Tensor | None = None
    graph: StepGraph | None = None

    @property
    def span(self) -> Span:
        """What it leads through."""
        return Span(self.start, self.stop, self.stop - self.start if self.h is None else self.h, self.number)


class SharedSteps(Sequence[Step]):
    """Steps that all samples take at the same times; each is told of when it is asked for.

    Args:
        times: before, between and after them, `(S + 1, 1)`.
        h: their lengths, `(S, 1)`.
        landings: which output time the first so many lead to.
        batch: how many samples there are.
    """

    def __init__(self, times: Tensor, h: Tensor, landings: dict[int, int], batch: int):
        self.times, self.h, self.landings, self.batch = times, h, landings, batch
        self._chunks: dict[int, tuple[Sequence[Tensor], Sequence[Tensor]]] = {}
        self._ways: dict[tuple[torch.dtype, int], list[tuple[Span, Tensor]]] = {}

    def __len__(self) -> int:
        return self.h.shape[0]

    def __getitem__(self, number: Any) -> Any:
        span = self.spans[number]
        return Step(span.start, span.stop, True, self.outputs.get(number), number, span.h)

    def copied(self) -> SharedSteps:
        """The same with times of their own: those of a single sample a function may write to."""
        return SharedSteps(self.times.clone(), self.h, self.landings, self.batch)

    @cached_property
    def spans(self) -> list[Span]:
        """What the steps lead through."""
        ends, lengths = (each.expand(-1, self.batch).unbind() for each in (self.times, self.h))
        return list(map(Span, ends, ends[1:], lengths, range(len(self))))

    def ways(self, dtype: torch.dtype, dims: int) -> list[tuple[Span, Tensor]]:
        """The same with times of some dimensions, as functions of states see them, and lengths `(1, 1)` of a dtype."""
        if (known := self._ways.get((dtype, dims))) is None:
            shape = self.batch, *(1,) * (dims - 1)
            ends, lengths = (each.view(-1, *(1,) * dims).expand(-1, *shape).unbind() for each in (self.times, self.h))
            h = self.h.to(dtype).unsqueeze(2)
            roots = h.clamp_min(torch.finfo(dtype).tiny).sqrt()
            spans = map(Span, ends, ends[1:], lengths, range(len(self)), roots.unbind())
            known = self._ways[dtype, dims] = list(zip(spans, h.unbind(), strict=True))
        return known

    def chunks(self, count: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Times before and after the steps, `(count,)` at a time; those behind the last are before the last `count`."""
        if (known := self._chunks.get(count)) is None:
            times, number = self.times.squeeze(1), -(-len(self) // count)
            rest = times[(number - 1) * count].expand(number * count - len(self))
            starts, stops = (torch.cat((each, rest)).view(number, count).unbind() for each in (times[:-1], times[1:]))
            known = self._chunks[count] = starts, stops
        return known

    @cached_property
    def outputs(self) -> dict[int, Outputs]:
        """The output times that steps lead to, by their numbers."""
        samples = torch.arange(self.batch, device=self.times.device)
        return {
            count - 1: Outputs(samples, torch.full_like(samples, place))
            for count, place in self.landings.items()
            if count
        }


@dataclass
class Phase:
    """Steps that the same samples took together.

    Attributes:
        rows: which samples, `(M,)`; None for all.
        limit: how many states to keep at most.
        steps: the steps.
        states: states before some of the steps, by their number; always that before the first.
        end: states after the last step, where the method can be undone from them; None otherwise.
        stride: of the numbers of steps before which states are kept.
        together: how many steps a kernel has made at a time; states are kept before such alone. 1 without one.
        leaves: the explicit tensors that the steps' graphs end at; None where no graph is kept.
    """

    rows: Tensor | None
    limit: int
    steps: Sequence[Step] = field(default_factory=list)
    states: dict[int, Tensor] = field(default_factory=dict)
    end: Tensor | None = None
    stride: int = 1
    together: int = 1
    leaves: list[Tensor] | None = None

    def add(self, step: Step, y: Tensor) -> None:
        """Records a step from a state `(B, n)`; a graph holds that itself."""
        assert isinstance(self.steps, list)
        if step.graph is None or not self.steps:
            self.keep(len(self.steps), y)
        self.steps.append(step)

    @property
    def graphs(self) -> dict[int, StepGraph]:
        """The graphs of steps, by their numbers."""
        if self.leaves is None:
            return {}
        return {number: step.graph for number, step in enumerate(self.steps) if step.graph is not None}

    def keep(self, number: int, y: Tensor) -> None:
        """Keeps the state before a step, `(B, n)`, or not; of all steps in turn."""
        if number % self.stride == 0:
            self.states[number] = y
            # Once stretches must be made again, these shall find room, too.
            if len(self.states) > (self.limit if self.stride == 1 else min(self.limit, max(2, 3 * self.limit // 4))):
                self.stride *= 2  # every second state will do
                self.states = {k: state for k, state in self.states.items() if k % self.stride == 0}

    @property
    def outputs(self) -> dict[int, Outputs]:
        """The output times within the steps, by their numbers."""
        if isinstance(self.steps, SharedSteps):
            return self.steps.outputs
        return {number: step.outputs for number, step in enumerate(self.steps) if step.outputs is not None}

    def backwards(self, advance: Callable[[Step, Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """The numbers of the steps, last first, each with the state before it.

        Never are more states alive than the limit, if that can be.

        Args:
            advance: makes a step again: the state after it from that before it.
        """
        states = {number: graph.y for number, graph in self.graphs.items()} | self.states
        ends = sorted(states)
        for low, high in zip(reversed(ends), reversed([*ends[1:], len(self.steps)]), strict=True):
            yield from self._stretch(low, high, states[low], advance, self.limit - len(self.states))

    def forwards(self, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor | None]]:
        """The steps to make in order to come by some of them, each with the state to begin at.

        Args:
            numbers: of the steps to come by, ascending.

        Yields:
            The number of a step, and the state before it that was kept; None where it goes on from the last step made.
        """
        kept, now = sorted(self.states), -1
        for number in numbers:
            near = kept[bisect_right(kept, number) - 1]
            if near >= now:
                yield near, self.states[near]
                now = near + 1
            yield from ((between, None) for between in range(now, number + 1))
            now = number + 1

    def _stretch(
        self, low: int, high: int, y: Tensor, advance: Callable[[Step, Tensor], Tensor], slots: int
    ) -> Iterator[tuple[int, Tensor]]:
        """The steps from `high - 1` down to `low`, from the state before the lowest, with room for some states more."""
        count = high - low
        stride = 1 if count - 1 <= slots else -(-count // (max(1, slots // 2) + 1))
        places = range(low, high, stride)
        kept = {low: y}
        for number in range(low, places[-1]):
            y = advance(self.steps[number], y)
            if number + 1 in places:
                kept[number + 1] = y
        top = high
        for number in reversed(places):
            state = kept.pop(number)
            if top - number == 1:
                yield number, state
            else:
                yield from self._stretch(number, top, state, advance, slots - len(kept))
            top = number


@dataclass
class Path:
    """A solve, as it can be made again.

    Attributes:
        phases: its phases, each with fewer samples than the one before.
        held: outputs that no step reached, whose value is the last state.
    """

    phases: list[Phase] = field(default_factory=list)
    held: Outputs | None = None

    @property
    def short(self) -> bool:
        """Whether no step, or kernel, leads to where others go on, so that outputs alone tell where they led."""
        return all(len(phase.steps) <= phase.together for phase in self.phases)

    def part(self) -> tuple[Path, list[Tensor]]:
        """The path without its states and graphs, and these, for `joined`."""
        states = [state for phase in self.phases for state in phase.states.values()]
        ends = [phase.end for phase in self.phases if phase.end is not None]
        graphs = [tensor for phase in self.phases for graph in phase.graphs.values() for tensor in graph.tensors()]
        phases = []
        for phase in self.phases:
            nothing = phase.states[0][:0]
            end = None if phase.end is None else nothing
            steps = phase.steps
            if bare := {number: graph.of(()) for number, graph in phase.graphs.items()}:
                steps = [step._replace(graph=bare.get(number)) for number, step in enumerate(steps)]
            phases.append(replace(phase, states=dict.fromkeys(phase.states, nothing), end=end, steps=steps))
        return replace(self, phases=phases), [*states, *ends, *graphs]

    def joined(self, states: Sequence[Tensor]) -> Path:
        """The path with the states that `part` gave, while a backward pass lasts."""
        rest = iter(states)
        phases = [replace(phase, states={number: next(rest) for number in phase.states}) for phase in self.phases]
        for phase in phases:
            phase.end = None if phase.end is None else next(rest)
        for phase in phases:
            if bare := phase.graphs:
                graphs = {number: graph.of(list(islice(rest, graph.count))) for number, graph in bare.items()}
                phase.steps = [step._replace(graph=graphs.get(number)) for number, step in enumerate(phase.steps)]
        return replace(self, phases=phases)

    def times(self, ts: Tensor) -> tuple[Tensor, Tensor]:
        """Times before and after every step, `(S, B)` each; from the output times `(T, B)`, for their shape."""
        stops, now, batch = [], ts[0], ts.shape[1]
        if len(self.phases) == 1 and self.phases[0].rows is None and len(steps := self.phases[0].steps) == 1:
            return steps[0].start.unsqueeze(0), steps[0].stop.unsqueeze(0)
        if self.phases and isinstance(steps := self.phases[0].steps, SharedSteps):
            return steps.times[:-1].expand(-1, batch), steps.times[1:].expand(-1, batch)
        for phase in self.phases:
            for step in phase.steps:
                now = step.stop if phase.rows is None else now.index_copy(0, phase.rows, step.stop)
                stops.append(now)
        if not stops:
            return ts[:0].clone(), ts[:0].clone()
        after = torch.stack(stops)
        # A sample whose event fired within a step goes no further.
        return torch.minimum(torch.cat((ts[:1], after[:-1])), after), after

"""Looking out for events while a solve goes on: where each is, whose solve it ends, and which crossings there were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.path.events.crossing import crossing
from torchimplicit.path.events.event import Condition, Conditions, Trigger
from torchimplicit.path.events.rounding import ROUNDINGS, sway
from torchimplicit.path.interpolant import Interpolant
from torchimplicit.path.span import Span
from torchimplicit.path.state import IntegratorState


class Met(NamedTuple):
    """The crossings of one event, as many rows as the sample with most of them has.

    Attributes:
        t: times as solvers count them, `(K, B)`, a sample's in a row; NaN behind its last one.
        y: the states there, `(K, B, n)`; the last ones behind.
    """

    t: Tensor
    y: Tensor

    def padded(self, count: int, end: Tensor) -> Met:
        """With rows up to so many; `end` are the samples' last states, `(B, n)`."""
        more = count - len(self.t)
        blank = self.t.new_full((more, *self.t.shape[1:]), torch.nan)
        return Met(torch.cat((self.t, blank)), torch.cat((self.y, end.expand(more, *end.shape))))

    @staticmethod
    def joined(parts: Sequence[Met], end: Tensor) -> Met:
        """The crossings of solves one after another; `end` are the samples' last states, `(B, n)`."""
        t, y = (torch.cat(each) for each in zip(*parts, strict=True))
        blank = t.detach().isnan()
        count = int((~blank).sum(0).max())
        order = torch.argsort(blank, dim=0, stable=True)[:count]
        y = y.gather(0, order.unsqueeze(2).expand(-1, *y.shape[1:]))
        return Met(t.gather(0, order), torch.where(blank.gather(0, order).unsqueeze(2), end, y))


class Log:
    """The crossings that a solve has come to.

    Args:
        events: how many events there are.
        t: a time for every sample, `(B,)`, for its batch and type.
    """

    def __init__(self, events: int, t: Tensor):
        self.found: list[list[tuple[Tensor, ...]]] = [[] for _ in range(events)]
        self.counts, self.nothing = t.new_zeros(events, len(t), dtype=torch.int64), t[None][:0]

    def add(self, event: int, which: Tensor, t: Tensor, y: Tensor, rows: Tensor | None) -> None:
        """Notes a crossing each of some samples, `(B,)` bool, at these times and states; `rows` as in `StepLoop`."""
        some = torch.nonzero(which).flatten()
        samples = some if rows is None else rows[some]
        self.found[event].append((self.counts[event, samples], samples, t[some], y[some]))
        self.counts[event, samples] += 1

    def met(self, end: Tensor) -> list[Met]:
        """The crossings of each event, side by side; `end` are the samples' last states, `(B, n)`."""
        every = []
        for found, counts in zip(self.found, self.counts, strict=True):
            met = Met(self.nothing, end[None][:0]).padded(int(counts.max()) if found else 0, end)
            for places, samples, t, y in found:
                met.t[places, samples], met.y[places, samples] = t, y
            every.append(met)
        return every


class Ending(NamedTuple):
    """Samples whose solve ends within a step: which, `(B,)`, and where, times `(B,)` and states `(B, n)`."""

    fires: Tensor
    t: Tensor
    y: Tensor


class Watch:
    """Looks out for the events of the samples of a solve, whose sides of them are kept in their `IntegratorState`.

    Args:
        trigger: the events.
        conditions: theirs, bound.
        log: where crossings are noted.
        rows: see `StepLoop`.
    """

    def __init__(self, trigger: Trigger, conditions: Conditions, log: Log, rows: Tensor | None = None):
        self.events, self.directions, self.conditions = trigger.events, trigger.directions, conditions
        self.log, self.rows = log, rows

    def begin(self, state: IntegratorState, slope: Tensor, stop: Tensor) -> None:
        """On which side every sample starts: the one that it moves to where it starts at zero.

        Args:
            state: where they stand; a side that they come with is theirs, unless it is zero.
            slope: the slopes there, `(B, n)`.
            stop: where the first step ends, `(B,)`; the probe is a small part of it.
        """
        value, eps = self.conditions.of_all(state.t, state.y), torch.finfo(state.t.dtype).eps
        h = stop - state.t
        ahead = eps**0.25 * h
        there = torch.addcmul(state.y, ahead.to(state.y.dtype).unsqueeze(1), slope)
        change = self.conditions.of_all(state.t + ahead, there) - value
        moved = torch.where((h > 0).unsqueeze(1), change.abs() * ((state.t.abs() + h) / ahead).unsqueeze(1), 0.0)
        swayed = sway(self.conditions.of_all, value, state.t, state.y, state.y.abs())
        met = value.abs() <= ROUNDINGS * eps * (moved + swayed)
        side = torch.where(met, change, value).sign()
        state.side = side if state.side is None else torch.where(state.side != 0, state.side, side)
        state.event = torch.full_like(state.status, -1)

    def sees(self, state: IntegratorState, stop: Tensor, y: Tensor) -> Tensor:
        """Which samples would meet an event in a step to this time and state, `(B,)`; moves nothing."""
        assert state.side is not None
        self.ends = self.conditions.of_all(stop, y)
        crosses = (state.side * self.ends <= 0) & (state.side != 0) & state.running.unsqueeze(1)
        self.fires = crosses & (state.side * self.directions <= 0)
        return self.fires.any(1)

    def passes(self, state: IntegratorState, accept: Tensor) -> None:
        """The samples that accept the step are on the side where it ends."""
        assert state.side is not None
        moved = accept.unsqueeze(1) & (self.ends != 0) & ~self.ends.isnan()
        state.side = torch.where(moved, self.ends.sign(), state.side)

    def ending(self, state: IntegratorState, accept: Tensor, span: Span, inside: Interpolant) -> Ending | None:
        """Where events end solves within an accepted step; None where they end no solve. Notes all crossings."""
        assert state.side is not None
        assert state.event is not None
        fires = self.fires & accept.unsqueeze(1)
        met = {i: self._meet(i, state, span, inside) for i, some in enumerate(fires.any(0).tolist()) if some}
        index, last, ended = torch.full_like(state.event, -1), torch.full_like(state.t, torch.inf), state.y
        for i, (t, y) in met.items():  # the first one ends it, of several at once the first in the list
            if self.events[i].terminal:
                sooner = fires[:, i] & (t < last)
                index, last = torch.where(sooner, i, index), torch.where(sooner, t, last)
                ended = torch.where(sooner.unsqueeze(1), y, ended)
        for i, (t, y) in met.items():
            ends = self.events[i].terminal
            self.log.add(i, fires[:, i] & ((index == i) if ends else (t <= last)), t, y, self.rows)
        # A crossing just where the step ends is behind it: the side is that to which the next step leads.
        state.side = torch.where(fires & (self.ends == 0), 0.0, state.side)
        if not any(self.events[i].terminal for i in met):
            return None
        state.event = torch.where(index >= 0, index, state.event)
        return Ending(index >= 0, last, ended)

    def _meet(self, i: int, state: IntegratorState, span: Span, inside: Interpolant) -> tuple[Tensor, Tensor]:
        """Where one event is within a step: times `(B,)` and states `(B, n)`, of the samples that it fires for."""
        assert state.side is not None
        side, ends, condition = state.side[:, i], self.ends[:, i], self.conditions.each[i]
        everybody = torch.arange(len(side), device=side.device)

        def value(theta: Tensor) -> Tensor:
            return condition(span.at(theta), inside.series(theta, everybody, 0))

        low = value(torch.zeros_like(state.t))
        # At a start at zero, rounding may have given it the wrong sign: it counts as one on its side of the event.
        theta = crossing(value, torch.where(low * side > 0, low, side * ends.abs()), ends, self.fires[:, i])
        y, slope = inside.series(theta, everybody, 1).chunk(2, dim=1)
        return span.at(theta), onto(condition, span, span.at(theta), y, slope)


def onto(condition: Condition, span: Span, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """States `(B, n)` moved along their slopes onto the condition: by roundings of the path, larger than its own.

    So a solve that starts from there starts at zero.
    """
    eps = torch.finfo(t.dtype).eps
    probe, most = eps**0.25 * span.h, ROUNDINGS * eps * (t.abs() + span.h)
    value = condition(t, y)
    for _ in range(2):
        rate = (condition(t, torch.addcmul(y, probe.to(y.dtype).unsqueeze(1), slope)) - value) / probe
        move = -value / rate
        moved = torch.addcmul(y, move.to(y.dtype).unsqueeze(1), slope)
        there = condition(t, moved)
        better = (move.abs() <= most) & (there.abs() < value.abs())
        y, value = torch.where(better.unsqueeze(1), moved, y), torch.where(better, there, value)
    return y

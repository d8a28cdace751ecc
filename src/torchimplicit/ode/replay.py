"""A path made again, step by step, as a graph that gradients flow through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.ode.call import PathCall
from torchimplicit.ode.dynamics import Field
from torchimplicit.ode.methods import Stepper
from torchimplicit.ode.record import Step
from torchimplicit.ode.step import Stepped


def attached(times: Tensor, ts: Tensor) -> Tensor:
    """Times `(B,)` with their gradients: those that are output times `(T, B)` are these, others move with the start."""
    same = times == ts
    moved = times + (ts[0] - ts[0].detach())
    return torch.where(same.any(0), torch.where(same, ts, 0.0).sum(0), moved)


def make_step(
    stepper: Stepper,
    field: Field,
    step: Step,
    y: Tensor,
    ts: Tensor,
    wants_times: bool = False,
    given: int | None = None,
    order: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Makes a recorded step again, from states `(B, n)`; `given` and `order` as in `Path`.

    Returns:
        The states after it, `(B, n)`, and its outputs `(M, n)`; None where it has none.
    """
    start, stop = step.start, step.stop
    if wants_times:
        start, stop = attached(start, ts[:given]), attached(stop, ts[:given])
    done = stepper(field, start, stop - start, y, None)
    end = done.y if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), done.y, y)
    if step.outputs is None:
        return end, None
    places, samples = step.outputs.places, step.outputs.samples
    part = (ts[places, samples] - start[samples]) / (stop - start)[samples]
    return end, done.inside.at(part, samples) if given is None else done.inside.series(part, samples, order)


class Remade(NamedTuple):
    """A step made again: its recorded times, its start and size with their gradients, what it found, states around."""

    before: Tensor
    after: Tensor
    start: Tensor
    h: Tensor
    done: Stepped
    y: Tensor
    end: Tensor


def remake(call: PathCall, field: Field, starts: Tensor, stops: Tensor, y: Tensor, ts: Tensor) -> Iterator[Remade]:
    """All steps again, in one graph; arguments as those of `whole`."""
    stepper = call.solver.stepper(y)
    for before, after in zip(starts.unbind(), stops.unbind(), strict=True):
        start, stop = attached(before, ts), attached(after, ts)
        done = stepper(field, start, stop - start, y, None)
        end = torch.where((after > before).unsqueeze(1), done.y, y)
        yield Remade(before, after, start, stop - start, done, y, end)
        y = end


def whole(call: PathCall, starts: Tensor, stops: Tensor, y0: Tensor, ts: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The outputs `(T, B, n)` again, all steps in one graph that every transform can go through.

    Args:
        call: the call that walked.
        starts: times before every step, `(S, B)`; those of samples that stand still equal their `stops`.
        stops: times after it.
        y0: states at the first time, `(B, n)`.
        ts: output times, `(T, B)`.
        tensors: the explicit tensors.
    """
    y, values = y0, [y0, *[None] * (len(ts) - 1)]
    everybody = torch.arange(len(y0), device=y0.device)
    with call.dynamics.bind(call.unshared(tensors)) as field, torch.enable_grad():
        for step in remake(call, field, starts, stops, y0, ts):
            within = (ts > step.before) & (ts <= step.after)
            for place in relevant(within, 1):
                part = (ts[place] - step.start) / torch.where(step.h == 0, 1.0, step.h)
                value, other = step.done.inside.at(part, everybody), values[place]
                values[place] = torch.where(within[place].unsqueeze(1), value, step.y if other is None else other)
            y = step.end
        reached = stops[-1] if len(stops) else ts[0]
        held = [y if value is None else value for value in values]
        late = (ts > reached).unsqueeze(2)
        return torch.where(late, y, torch.stack(held))


def relevant(within: Tensor, first: int = 0) -> Sequence[int]:
    """The output times, by place, that lie within some sample's step, as far as a transform lets one look."""
    if transforms.level(within) >= 0:
        return range(first, len(within))
    return torch.nonzero(within.any(1)).flatten().tolist()

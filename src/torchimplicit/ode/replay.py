"""A path made again, step by step, as a graph that gradients flow through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.ode.call import PathCall
from torchimplicit.ode.dynamics import Field
from torchimplicit.ode.methods import Stepper
from torchimplicit.ode.record import Step


def attached(times: Tensor, ts: Tensor) -> Tensor:
    """Times `(B,)` with their gradients: those that are output times `(T, B)` are these, others move with the start."""
    same = times == ts
    moved = times + (ts[0] - ts[0].detach())
    return torch.where(same.any(0), torch.where(same, ts, 0.0).sum(0), moved)


def make_step(
    stepper: Stepper, field: Field, step: Step, y: Tensor, ts: Tensor, wants_times: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Makes a recorded step again, from states `(B, n)`.

    Returns:
        The states after it, `(B, n)`, and its outputs `(M, n)`; None where it has none.
    """
    start, stop = step.start, step.stop
    if wants_times:
        start, stop = attached(start, ts), attached(stop, ts)
    done = stepper(field, start, stop - start, y, None)
    end = done.y if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), done.y, y)
    if step.outputs is None:
        return end, None
    places, samples = step.outputs.places, step.outputs.samples
    part = (ts[places, samples] - start[samples]) / (stop - start)[samples]
    return end, done.inside.at(part, samples)


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
        stepper = call.solver.stepper(y0)
        for before, after in zip(starts.unbind(), stops.unbind(), strict=True):
            start, stop = attached(before, ts), attached(after, ts)
            h = stop - start
            done = stepper(field, start, h, y, None)
            within = (ts > before) & (ts <= after)
            for place in _relevant(within):
                part = (ts[place] - start) / torch.where(h == 0, 1.0, h)
                value, other = done.inside.at(part, everybody), values[place]
                values[place] = torch.where(within[place].unsqueeze(1), value, y if other is None else other)
            y = torch.where((after > before).unsqueeze(1), done.y, y)
        reached = stops[-1] if len(stops) else ts[0]
        held = [y if value is None else value for value in values]
        late = (ts > reached).unsqueeze(2)
        return torch.where(late, y, torch.stack(held))


def _relevant(within: Tensor) -> Sequence[int]:
    """The output times, by place, that lie within some sample's step, as far as a transform lets one look."""
    if transforms.level(within) >= 0:
        return range(1, len(within))
    return torch.nonzero(within.any(1)).flatten().tolist()

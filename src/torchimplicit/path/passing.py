"""Which output times the samples of a step pass, and which they never come to."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.path.record import Outputs
from torchimplicit.path.state import IntegratorState


def pass_outputs(state: IntegratorState, times: Tensor, stop: Tensor) -> Outputs:
    """The outputs up to these times that were ahead of the samples, which are behind them from now on.

    Args:
        state: where the samples stand before the step.
        times: the output times, a row for each sample, `(B, T + 1)`, the last one infinite.
        stop: where each sample comes to, `(B,)`.
    """
    passed = torch.searchsorted(times, stop.unsqueeze(1), right=True).squeeze(1)
    # A sample that stays where it is passes nothing, also where that is at an output.
    passed = torch.where(stop > state.t, passed, state.next)
    counts = passed - state.next
    samples = torch.repeat_interleave(counts)
    offset = torch.cumsum(counts, 0) - counts
    places = torch.arange(len(samples), device=stop.device) - offset[samples] + state.next[samples]
    state.next = passed
    return Outputs(samples, places)


def pass_last(state: IntegratorState, ahead: Tensor, stop: Tensor) -> tuple[Outputs, Tensor]:
    """As `pass_outputs`, of two output times, the second of which lies at the end of a step; and what is ahead then.

    Args:
        state: where the samples stand before the step, or that they all arrive.
        ahead: the next output time of every sample, `(B,)`.
        stop: where each sample comes to, `(B,)`.
    """
    if state.arrived:
        samples, state.next = torch.arange(len(stop), device=stop.device), state.next + 1
        return Outputs(samples, torch.ones_like(samples), 1, True), ahead
    comes = (stop >= ahead) & (stop > state.t)  # who stays where it is passes nothing
    samples, state.next = torch.nonzero(comes).squeeze(1), state.next + comes
    return Outputs(samples, torch.ones_like(samples), 1), ahead.masked_fill(comes, torch.inf)


def hold(state: IntegratorState, values: Tensor) -> Outputs | None:
    """Fills the outputs that were not reached with the last states; says which they are."""
    late = torch.arange(len(values), device=values.device).unsqueeze(1) >= state.next
    if not bool(late.any()):
        return None
    places, samples = torch.nonzero(late, as_tuple=True)
    values[places, samples] = state.y[samples]
    return Outputs(samples, places)

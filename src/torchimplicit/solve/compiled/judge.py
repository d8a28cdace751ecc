"""How iterates are judged inside a kernel: what `Samples` does, as one function of tensors and with no way around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.solve.samples import FLOOR, PATIENCE_AT_FLOOR, SLACK, SMALL, Samples


class Standing(NamedTuple):
    """What is known of every sample; see `Samples`.

    Attributes:
        best: the best residual's norm, `(B,)`.
        stalled: looks since then, `(B,)`.
        running: whether it has not stopped, `(B,)`.
        latest: whether its latest iterate is its best, `(B,)`.
        status: of those that have stopped, `(B,)`.
        steps: that these took, `(B,)`.
        kept: iterates set aside, `(B, n)`.
    """

    best: Tensor
    stalled: Tensor
    running: Tensor
    latest: Tensor
    status: Tensor
    steps: Tensor
    kept: Tensor


class Rules(NamedTuple):
    """What samples are judged by that no option changes.

    Attributes:
        patience: looks without a better residual before a sample counts as stagnated.
        eps: rounding of the function's dtype.
    """

    patience: int
    eps: float


class Step(NamedTuple):
    """What a step has led to.

    Attributes:
        number: of the step, a scalar.
        before: the iterate before it, `(B, n)`.
        z: the one after it, `(B, n)`.
        size: the norm of the residual there, `(B,)`.
        scale: the norm of the iterate, `(B,)`.
        tolerance: what the norm of the residual may be, `(B,)`.
        limit: from which one on it has diverged, `(B,)`.
    """

    number: Tensor
    before: Tensor
    z: Tensor
    size: Tensor
    scale: Tensor
    tolerance: Tensor
    limit: Tensor


def judged(standing: Standing, step: Step, rules: Rules, minute: Tensor) -> tuple[Standing, Tensor, Tensor]:
    """What is known after one more step.

    Args:
        standing: what was known before.
        step: what it has led to.
        rules: what to judge by.
        minute: whether some tolerance may be so small that its square is none of the dtype's numbers, a scalar.

    Returns:
        What is known now; whether norms must be measured with more care than here before one can tell, a scalar; and
        whether samples have stopped while others go on.
    """
    best, stalled, running, latest, status, steps, kept = standing
    size, scale = step.size, step.scale
    improves = running & (size <= best * (1 / SLACK))
    failing = running & ~improves
    arrives = improves & (size <= step.tolerance) & (step.tolerance < math.inf)
    stalled = torch.where(failing, stalled + 1, 0)
    kept = torch.where((failing & latest).unsqueeze(1), step.before, kept)
    latest = torch.where(running, improves, latest)
    best = torch.where(improves, size, best)
    patience = torch.where(size <= FLOOR * rules.eps * scale, PATIENCE_AT_FLOOR, rules.patience)
    failure = torch.where(stalled >= patience, int(Status.STAGNATED), int(Status.MAX_STEPS))
    failure = torch.where(size > step.limit, int(Status.DIVERGED), failure)
    failure = torch.where((size + scale).isfinite(), failure, int(Status.NON_FINITE))
    stops = arrives | (failing & (failure != int(Status.MAX_STEPS)))
    kept = torch.where((stops & latest).unsqueeze(1), step.z, kept)
    status = torch.where(stops, torch.where(arrives, int(Status.CONVERGED), failure), status)
    info = torch.finfo(size.dtype)
    lost = running & ((size < (info.tiny / info.eps) ** 0.5) | (size == math.inf))
    doubtful = lost.any() & (failing.any() | (minute & arrives.any()))
    steps = torch.where(stops, step.number, steps)
    running, latest = running & ~stops, latest & ~stops
    parts = stops.any() & running.any()
    return Standing(best, stalled, running, latest, status, steps, kept), doubtful, parts


def standing_of(samples: Samples, z: Tensor) -> Standing:
    """What is known of samples at the start, as tensors that are each another one."""
    kept = z if samples.kept is None else samples.kept
    shared = samples.best, samples.stalled, samples.running, samples.latest, samples.status, samples.steps, kept
    return Standing(*(each.clone() for each in shared))


def hand_back(
    samples: Samples, z: Tensor, standing: Standing, norms: tuple[Tensor, Tensor], step: int, facts: Sequence[int]
) -> None:
    """Tells what is known of samples after a step that kernels have made to whoever judges from there on.

    Args:
        samples: to be told.
        z: the iterate, `(B, n)`.
        standing: what is known.
        norms: of everybody's residual and iterate, `(B,)` each.
        step: its number.
        facts: how many samples run, whether some has failed, and whether some went on after others had stopped.
    """
    count, failed, apart = facts
    for name, value in standing._asdict().items():
        setattr(samples, name, value)
    samples.count, samples.any_running, samples.few = count, count > 0, z.numel() >= SMALL and 2 * count <= len(z)
    samples.doubts, samples.apart = samples.doubts or bool(failed), samples.apart or bool(apart)
    samples.all_running = samples.all_latest = False
    samples.any_stalled = samples.eventful = True
    samples.previous, samples.seen, samples.history = z, norms, {step: norms[0]}


def go_on(samples: Samples) -> None:
    """Lets samples be judged on where kernels have left them."""
    stopped = ~samples.running
    samples.atol = samples.atol.masked_fill(stopped, -math.inf)
    samples.lift = samples.lift.masked_fill(stopped, math.inf)
    samples.bar = torch.addcmul(samples.lift, samples.best, samples.part)

"""Samples that depend on others: they have converged beside what these were then, not beside where these have ended.

A solver goes on with a sample that has stopped, beside the others, or holds it where it is. So where it still is at its
answer when the last one stops, with a residual as small as then, there is nothing to look at and no evaluation is
spent. One is where it has moved away or its residual has grown, and where some sample has failed: what the solver does
to those from then on may be anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Status
from torchimplicit.core.tree import norm, scaled_norm
from torchimplicit.solve.ahead import look_ahead
from torchimplicit.solve.claims import Claims
from torchimplicit.solve.look import Claim
from torchimplicit.solve.samples import Samples

PLAY = (
    10.0  # a converged sample's residual or Newton step beside others, over its tolerance, by which it depends on them
)
FAIR, NEAR = 5.0, 4.0  # half of which is fair: of the residual where the solver has gone on, and of its way there


@torch.no_grad()
def look_again(samples: Samples, problem: Residual, state: Any, answer: Tensor) -> None:
    """Where samples have not all stopped at one step, sees whether those that have converged still have: else COUPLED.

    Args:
        samples: what the loop knows of them, at its end.
        problem: the residual's function.
        state: where the solver has ended.
        answer: what the solve returns, `(B, n)`.
    """
    if not (samples.apart or _some_failed(samples)):
        return
    arrived = samples.status == Status.CONVERGED
    residual = state.residual if samples.beside is None else samples.beside
    seen = problem, arrived, (state.z, residual), answer
    found = _at_claims(samples, *seen) if isinstance(samples, Claims) else _at_fixed_points(samples, *seen)
    if found is not None:
        moved, size = found
        samples.status = Status.COUPLED.where(moved, samples.status)
        samples.best = torch.where(moved & size.isfinite(), size, samples.best)


def _some_failed(samples: Samples) -> bool:
    return samples.doubts or samples.any_running


def _at_fixed_points(
    samples: Samples, problem: Residual, arrived: Tensor, ended: tuple[Tensor, Tensor], answer: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Which residuals are larger than the tolerance at the answers, and these, `(B,)` each; None without a look."""
    failed = _some_failed(samples)
    measure = scaled_norm if failed or samples.minute else norm
    tolerance = torch.add(samples.atol, measure(answer), alpha=samples.rtol)
    if not failed:
        z, residual = ended
        if bool((torch.maximum(NEAR * measure(z - answer), measure(residual)) <= FAIR * tolerance).all()):
            return None
    if not bool(arrived.any()):
        return None
    size = scaled_norm(problem.look(answer))
    return arrived & ~(size <= PLAY * tolerance), size


def _at_claims(
    samples: Claims, problem: Residual, arrived: Tensor, ended: tuple[Tensor, Tensor], answer: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The same of roots and minima, whose residual has no unit: one that has grown is asked for its Newton step."""
    rtol, atol = samples.tolerances
    small = PLAY * samples.best
    if bool(arrived.all()):
        z, residual = ended
        near = (NEAR * (z - answer).abs() <= FAIR * (atol + rtol * answer.abs())).all(1)
        if bool((near & (FAIR * norm(residual) <= small)).all()):
            return None
    elif not bool(arrived.any()):
        return None
    residual = problem.look(answer)
    size = norm(residual)
    grown = arrived & ~(size <= small)
    if not bool(grown.any()):
        return None
    claim = Claim(samples.steps, answer, residual, size, samples.best, samples.largest, samples.highest)
    ahead = look_ahead(problem, claim, rtol, atol)
    return grown & ~((ahead.excess <= PLAY) | ahead.settled), size

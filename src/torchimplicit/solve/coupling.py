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

PLAY = 10.0  # by how many tolerances a converged sample is off beside others, from which on it depends on them
FAIR = 8.0  # and up to how many it may be without a look, for a function whose slope is one at most


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
    residual = state.residual if samples.beside is None else samples.beside
    seen = problem, (state.z, residual), answer
    found = _at_claims(samples, *seen) if isinstance(samples, Claims) else _at_fixed_points(samples, *seen)
    if found is not None:
        moved, size = found
        samples.status = Status.COUPLED.where(moved, samples.status)
        samples.best = torch.where(moved & size.isfinite(), size, samples.best)


def _some_failed(samples: Samples) -> bool:
    return samples.doubts or samples.any_running


def _at_fixed_points(
    samples: Samples, problem: Residual, ended: tuple[Tensor, Tensor], answer: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Which residuals are larger than the tolerance at the answers, and these, `(B,)` each; None without a look."""
    if not _some_failed(samples):
        z, residual = ended
        size, scale = samples.seen
        tolerance = samples.rtol * scale + samples.absolute
        if samples.minute and bool((tolerance < samples.squares[0]).any()):  # squares may be none of its numbers
            way, size = scaled_norm(z - answer), scaled_norm(residual)
        else:
            way, size = norm(z - answer), size if samples.beside is None else norm(residual)
        if bool((torch.add(size, way, alpha=2) <= FAIR * tolerance).all()):  # what may be left at an answer
            return None
    arrived = samples.status == Status.CONVERGED
    if not bool(arrived.any()):
        return None
    size = scaled_norm(problem.look(answer))
    return arrived & ~(size <= PLAY * (samples.rtol * scaled_norm(answer) + samples.absolute)), size


def _at_claims(
    samples: Claims, problem: Residual, ended: tuple[Tensor, Tensor], answer: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The same of roots and minima, whose residual has no unit: one that has grown is asked for its Newton step."""
    arrived, (rtol, atol) = samples.status == Status.CONVERGED, samples.tolerances
    if bool(arrived.all()):
        z, residual = ended
        near = ((z - answer).abs() <= atol + rtol * answer.abs()).all(1)
        if bool((near & (norm(residual) <= samples.best)).all()):
            return None
    elif not bool(arrived.any()):
        return None
    residual = problem.look(answer)
    size = norm(residual)
    grown = arrived & ~(size <= PLAY * samples.best)
    if not bool(grown.any()):
        return None
    claim = Claim(samples.steps, answer, residual, size, samples.best, samples.largest, samples.highest)
    ahead = look_ahead(problem, claim, rtol, atol)
    return grown & ~((ahead.excess <= PLAY) | ahead.settled), size

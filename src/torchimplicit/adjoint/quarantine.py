"""Keeping a sample that is not finite out of everybody's gradients.

A zero cotangent is not enough: zero times NaN is NaN, so the gradient of a shared weight would be lost to one bad
sample. Such a sample is therefore replaced by a copy of a healthy one before anything is differentiated, and the copy
gets no cotangent. Which arguments carry the batch dimension is found by experiment: replacing a sample's row of a
batched argument changes no other sample's residual by a single bit, because samples are independent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint.call import Adjoint, Call, Record
from torchimplicit.core.problem import Problem
from torchimplicit.core.status import ConvergenceWarning


def quarantine(
    call: Call, adjoint: Adjoint, value: Tensor, z0: Tensor, tensors: list[Tensor], sick: Tensor
) -> tuple[Tensor, Any]:
    """The solution again, differentiable without the sick samples.

    Args:
        call: the call that gave `value`.
        adjoint: how to differentiate.
        value: the solution `(B, n)`, sick samples held at their last finite iterate.
        z0: its start, `(B, n)`.
        tensors: the explicit tensors.
        sick: which samples are not finite, `(B,)` bool.

    Returns:
        `value`, with gradients from the healthy samples only; and the result of the solve that healthy samples stood
        in for sick ones in, None where there is no healthy one.
    """
    held = value.detach()
    again = replace(call, record=Record(), audit=False)
    value = without(call, held, tensors, sick, lambda rows, tensors: adjoint.solve(again, z0[rows], tensors))
    result = again.record.take_result()
    again.record.report = call.record.report  # backward reports go to the first solve's report
    return value, result


def without(
    call: Call,
    held: Tensor,
    tensors: list[Tensor],
    sick: Tensor,
    differentiable: Callable[[Tensor, list[Tensor]], Tensor],
) -> Tensor:
    """`held` `(B, n)`, with a gradient that comes from the healthy samples only.

    Args:
        call: the call.
        held: values, the sick ones finite.
        tensors: the explicit tensors.
        sick: which samples are not finite, `(B,)` bool.
        differentiable: gives the healthy samples' values their gradient, from the rows `(B,)` that stand in for each
            sample and from tensors in which they do, too.
    """
    if bool(sick.all()):
        return unmoved(held, tensors)
    assert isinstance(call.problem, Problem)
    rows = stand_ins(sick)
    # At the solution and at another state: where a weight meets a zero of the solution, replacing it changes nothing.
    states = (held[rows], held[rows] + torch.rand_like(held))

    def residuals(tensors: list[Tensor]) -> Tensor:
        with torch.no_grad(), call.problem.bind(call.unshared(tensors)) as residual:
            return torch.stack([residual(state) for state in states], dim=1)

    healthy = replaced(residuals, tensors, call.problem.explicit.shared, rows, sick)
    if not residuals(healthy)[:, 0].isfinite().all():
        warn_of_leak()
    return torch.where(sick.unsqueeze(1), held, differentiable(rows, healthy))


def unmoved(held: Tensor, tensors: list[Tensor]) -> Tensor:
    """Values connected to the tensors through no element of them: every gradient is exactly zero."""
    return held + sum(tensor.reshape(-1)[:0].sum() for tensor in tensors if tensor.is_floating_point())


def stand_ins(sick: Tensor) -> Tensor:
    """Which sample stands at each place, `(B,)`: a healthy one, the same one for all, for the sick."""
    return torch.where(sick, int(torch.nonzero(~sick)[0]), torch.arange(len(sick), device=sick.device))


def replaced(
    evaluate: Callable[[list[Tensor]], Tensor], tensors: list[Tensor], shared: int, rows: Tensor, sick: Tensor
) -> list[Tensor]:
    """The tensors with the sick samples' rows replaced, wherever that changes nothing for the others.

    Args:
        evaluate: the function's values, samples in dimension 0, from the tensors.
        tensors: the explicit tensors.
        shared: how many of them, the first ones, belong to no sample.
        rows: which sample shall stand at each place, `(B,)`.
        sick: which samples are not finite, `(B,)` bool.
    """
    before = evaluate(tensors)[~sick]
    for i in range(shared, len(tensors)):
        if tensors[i].dim() and len(tensors[i]) == len(rows):
            candidate = [*tensors[:i], tensors[i][rows], *tensors[i + 1 :]]
            if torch.equal(evaluate(candidate)[~sick], before):
                tensors = candidate
    return tensors


def warn_of_leak() -> None:
    """Says that sick samples are still among the healthy ones."""
    warnings.warn(
        ConvergenceWarning(
            "samples that are not finite could not be kept apart: they will reach the gradients of shared tensors. "
            "Pass every argument with the batch in dimension 0, or leave such samples out."
        ),
        stacklevel=3,
    )

"""Keeping a sample that is not finite out of everybody's gradients.

A zero cotangent is not enough: zero times NaN is NaN, so the gradient of a shared weight would be lost to one bad
sample. Such a sample is therefore replaced by a copy of a healthy one before anything is differentiated, and the copy
gets no cotangent. Which arguments carry the batch dimension is found by experiment: perturbed rows of the non-finite
samples change no healthy sample's residual by a single bit, and no healthy sample has a derivative by them. The
backward pass does the same where only a derivative is not finite.
"""

from __future__ import annotations

import cmath
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint.call import Adjoint, Lent, PointCall, PointRecord
from torchimplicit.adjoint.replacement import column, replaced, stand_ins
from torchimplicit.core import transforms
from torchimplicit.core.independence import jolted, noise
from torchimplicit.core.problem import Problem, Residual
from torchimplicit.core.status import ConvergenceWarning, Report, Status, react
from torchimplicit.core.tree import largest, norm

ELSEWHERE = 0.1  # part of a sample's solution, or way there, by which two solves of it never differ
MOST_ATTEMPTS = 64  # to find the samples that spoil a gradient


def find_nonfinite(value: Tensor, report: Report) -> Tensor | None:
    """Which samples must be kept out of gradients, `(B,)` bool; None where there are none, or no gradients."""
    if not value.requires_grad or transforms.active() or report.converged:
        return None
    nonfinite = report.status == Status.NON_FINITE
    return nonfinite if bool(nonfinite.any()) else None


def quarantine(
    call: PointCall, adjoint: Adjoint, value: Tensor, z0: Tensor, tensors: list[Tensor], nonfinite: Tensor
) -> tuple[Tensor, Any]:
    """The solution again, differentiable without the non-finite samples.

    Args:
        call: the call that gave `value`.
        adjoint: how to differentiate.
        value: the solution `(B, n)`, non-finite samples held at their last finite iterate.
        z0: its start, `(B, n)`.
        tensors: the explicit tensors.
        nonfinite: which samples are not finite, `(B,)` bool.

    Returns:
        `value`, with gradients from the healthy samples only; and the result of the solve that healthy samples stood
        in for non-finite ones in, None where there is no healthy one.
    """
    held, solved = value.detach(), []

    def run(residual: Residual, z: Tensor) -> Any:
        result = call.run(residual, z)
        solved.append(result.z.detach())
        # Linearised where the report is about; steps that are differentiated themselves can be so only where they end.
        return result if result.z.requires_grad else replace(result, z=held[stand_ins(nonfinite)])

    again = replace(call, run=run, record=PointRecord(), audit=False)
    with transforms.random_state_kept(held.device):
        value = without(call, held, tensors, nonfinite, lambda rows, tensors: adjoint.solve(again, z0[rows], tensors))
    result = again.record.take_result()
    if solved and call.record.report is not None:
        _compare(call.record.report, z0.detach(), held, solved[0])
    again.record.report = call.record.report  # backward reports go to the first solve's report
    return value, result


def _compare(report: Report, z0: Tensor, held: Tensor, again: Tensor) -> None:
    """A sample that ends elsewhere, with others in the place of some, depends on these: it is COUPLED."""
    elsewhere = ~(norm(again - held) <= ELSEWHERE * torch.maximum(norm(held), norm(held - z0)))
    report.status = Status.COUPLED.where(elsewhere & (report.status == Status.CONVERGED), report.status)


def without(
    call: PointCall,
    held: Tensor,
    tensors: list[Tensor],
    nonfinite: Tensor,
    differentiable: Callable[[Tensor, list[Tensor]], Tensor],
) -> Tensor:
    """`held` `(B, n)`, with a gradient that comes from the healthy samples only.

    Args:
        call: the call.
        held: values, the non-finite ones finite.
        tensors: the explicit tensors.
        nonfinite: which samples are not finite, `(B,)` bool.
        differentiable: gives the healthy samples' values their gradient, from the rows `(B,)` that stand in for each
            sample and from tensors in which they do, too.
    """
    if bool(nonfinite.all()):
        return unmoved(held, tensors)
    rows = stand_ins(nonfinite)
    healthy, residual = _with_stand_ins(call, held, tensors, rows, nonfinite)
    if not residual.isfinite().all():
        warn_of_leak()
    return torch.where(nonfinite.unsqueeze(1), held, Lent.apply(held, differentiable(rows, healthy)))


def _with_stand_ins(
    call: PointCall, z: Tensor, tensors: list[Tensor], rows: Tensor, nonfinite: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The tensors in which healthy samples stand in for the non-finite ones, and the residual `(B, n)` there."""
    assert isinstance(call.problem, Problem)
    # At the solution and at another state: where a weight meets a zero of the solution, replacing it changes nothing.
    states = [z[rows], jolted(z[rows])]

    def residuals(tensors: list[Tensor]) -> Tensor:
        with call.problem.bind(call.unshared(tensors)) as residual:
            return torch.stack([residual(state) for state in states], dim=1)

    if bool((states[0] == 0).all(1).any()):  # zeros have no unit, in which functions saturate: values may
        with torch.no_grad():
            states.append(states[0] + noise(z) * largest(residuals(tensors)[:, 0])[rows])
    healthy = replaced(residuals, tensors, call.problem.explicit.shared, rows, nonfinite)
    with torch.no_grad():
        return healthy, residuals(healthy)[:, 0]


VJP = Callable[[PointCall, Tensor, Tensor, list[Tensor]], list[Tensor | None]]


def finite_gradients(
    call: PointCall, z: Tensor, tensors: list[Tensor], grad: Tensor, vjp: VJP, found: list[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of the tensors without the samples that make them NaN or infinite.

    A sample may be finite and its Jacobian not: then even a zero cotangent spoils what samples share.

    Args:
        call: the call.
        z: the solution, `(B, n)`.
        tensors: the explicit tensors.
        grad: the incoming gradient, `(B, n)`.
        vjp: gives the gradients of the tensors, `(call, grad, z, tensors) -> grads`, and reports.
        found: what it gave.
    """
    if all_finite(found) or not isinstance(call.problem, Problem):
        return found
    report = call.record.report and call.record.report.backward
    nonfinite = torch.zeros_like(grad[:, 0], dtype=torch.bool) if report is None else report.status == Status.NON_FINITE
    quiet = replace(call, record=replace(call.record, report=None), on_failure="ignore")

    def attempt(nonfinite: Tensor) -> list[Tensor | None] | None:
        if bool(nonfinite.all()):
            return [None if each is None else torch.zeros_like(each) for each in found]
        rows = stand_ins(nonfinite)
        healthy, _ = _with_stand_ins(call, z.detach(), tensors, rows, nonfinite)
        grads = vjp(quiet, torch.where(nonfinite.unsqueeze(1), 0, grad), z[rows], healthy)
        if not all_finite(grads):
            return None
        # What replaced a non-finite sample's row has no cotangent, but its place is the non-finite sample's.
        own = [new is not old for new, old in zip(healthy, tensors, strict=True)]
        return [
            _zeroed(each, nonfinite) if mine and each is not None else each
            for each, mine in zip(grads, own, strict=True)
        ]

    nonfinite, apart = find_apart(attempt, nonfinite)
    if apart is None:
        warn_of_leak()
        return found
    if report is not None and bool((nonfinite & (report.status != Status.NON_FINITE)).any()):
        report.status = Status.NON_FINITE.where(nonfinite, report.status)
        react(report, call.on_failure)
    return apart


def find_apart(
    attempt: Callable[[Tensor], list[Tensor | None] | None], nonfinite: Tensor
) -> tuple[Tensor, list[Tensor | None] | None]:
    """Which samples spoil the gradients, `(B,)` bool, and the gradients without them; None where they stay spoilt.

    Args:
        attempt: gives the gradients without these samples, None where they are not finite.
        nonfinite: samples that are known to be non-finite.
    """
    with transforms.random_state_kept(nonfinite.device):
        apart = attempt(nonfinite) if bool(nonfinite.any()) else None
        if apart is None:
            nonfinite = _search(attempt, nonfinite)
            apart = None if len(nonfinite) > 1 and bool(nonfinite.all()) else attempt(nonfinite)
    return nonfinite, apart


def _search(attempt: Callable[[Tensor], Any], nonfinite: Tensor) -> Tensor:
    """Which samples spoil the gradients, by halving: `(B,)` bool; all when that cannot be found out.

    Args:
        attempt: gives None where not all of the samples that are not given to it are healthy.
        nonfinite: samples that are known to be non-finite.
    """
    todo, nonfinite = [*torch.nonzero(~nonfinite).flatten().tensor_split(2)], nonfinite.clone()
    for _ in range(MOST_ATTEMPTS):
        if not todo:
            return nonfinite
        some = todo.pop()
        others = torch.ones_like(nonfinite)
        others[some] = False
        if len(some) == 0 or attempt(others) is not None:
            continue
        if len(some) == 1:
            nonfinite[some] = True
        else:
            todo += some.tensor_split(2)
    return torch.ones_like(nonfinite)


def all_finite(tensors: Sequence[Tensor | None]) -> bool:
    """Whether no entry is NaN or infinite; one read by the host where that is so."""
    found = [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors if tensor is not None]
    if not found or cmath.isfinite(reduce(torch.add, (tensor.sum() for tensor in found)).item()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in found)  # a sum may overflow


def _zeroed(tensor: Tensor, nonfinite: Tensor) -> Tensor:
    """A tensor with zeros in the non-finite samples' rows."""
    return torch.where(column(nonfinite, tensor), 0, tensor)


def unmoved(held: Tensor, tensors: list[Tensor]) -> Tensor:
    """Values connected to the tensors through no element of them: every gradient is exactly zero."""
    numbers = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    return held + sum(tensor.reshape(-1)[:0].real.sum() for tensor in numbers)


def warn_of_leak() -> None:
    """Says that non-finite samples are still among the healthy ones."""
    warnings.warn(
        ConvergenceWarning(
            "samples that are not finite could not be kept apart: they will reach the gradients of shared tensors. "
            "Pass every argument with the batch in dimension 0, or leave such samples out."
        ),
        stacklevel=3,
    )

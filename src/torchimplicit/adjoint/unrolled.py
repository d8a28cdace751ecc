"""Differentiation through the solver's own iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchimplicit.adjoint.call import Adjoint, Lent, PointCall
from torchimplicit.adjoint.gate import Gate
from torchimplicit.core import transforms
from torchimplicit.core.independence import jolted, noise
from torchimplicit.core.options import is_number, require
from torchimplicit.core.outcome import Remedy
from torchimplicit.core.problem import Problem, Residual
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import largest, norm
from torchimplicit.linear import Jacobian
from torchimplicit.linear.report import LINEAR

MOST = 1e4  # an error is said to be, relative to what it should be; a number in half precision, too
ASIDE = 0.1  # how far from a solution, relative to it, steps begin whose own start was nearer still
UNROLLED = LINEAR | {
    Status.MAX_STEPS: Remedy(
        "The derivative of the steps has not come to that of the solution, which it lags behind.",
        ("a solver with a smaller rtol and more max_steps", "Implicit()"),
    ),
}


@dataclass(frozen=True)
class Unrolled(Adjoint):
    r"""Backpropagates through every step that the solver took: memory grows with the steps.

    The derivative of the computation rather than of the solution. It lags behind the value by some steps, and a sample
    that starts at its solution takes none: such samples are therefore solved once more, from a little aside, for the
    sake of their gradient. How far the gradient is the solution's is measured, for one evaluation there and its
    products: with $u$ what the steps put in the place of $B^{-\top} g$ for the incoming gradient $g$, the residual
    $g - B^\top u$ is that of `solution.backward`. Steps that jump, as `Broyden` on linear maps, have put $u$ in place
    away from the solution, where the function depends on its tensors in another way: so the gradients themselves are
    held against $-(\partial r / \partial a)^\top u$ at the solution. Of a tensor that the samples share there is one
    gradient, and what is wrong with it is said of all of them.

    The reference that `Implicit` is checked against, and a choice for a handful of steps or where the start `z0` needs
    a gradient. Not for deep solves (memory) nor under `torch.vmap`; under other transforms nothing is measured, nor
    with `save_steps`. Gradients that some sample makes infinite or NaN are not compared, but their $u$ is.

    Args:
        checkpoint: recompute the function in the backward pass instead of keeping its activations: one state per step
            instead, for one evaluation more.
        rtol: a sample's gradient has converged when $|g - B^\top u| \le$ `rtol` $|g|$, and so near, by their largest
            entries, are the gradients to what they should be; beyond it counts as having taken too few steps.
    """

    checkpoint: bool = False
    rtol: float = 1e-2

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "checkpoint", isinstance(self.checkpoint, bool), "True or False")
        require(self, "rtol", is_number(self.rtol) and self.rtol > 0, "a number > 0")

    def solve(self, call: PointCall, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `Adjoint.solve`."""
        if any(transforms.is_mapped(tensor) for tensor in (z0, *tensors)):
            raise NotImplementedError(
                "Unrolled does not work under torch.vmap, whose samples cannot stop on their own; try Implicit()"
            )
        if self.checkpoint and transforms.active():
            raise NotImplementedError(
                "Unrolled(checkpoint=True) does not work under torch.func transforms; try Unrolled()"
            )
        if transforms.active():
            return self._gradient(call, z0, tensors, begins=True)
        gate = Gate(call, self._gradient, z0, tensors)
        inside = gate.enter()
        with call.noting_writes(tensors):
            steps = self._run(call, z0, inside, gate.watch)
        call.record.report, call.record.result = steps.result.report, steps.result
        if call.audit:
            call.problem.check_captures(steps.residual, [*inside, steps.z])
        if not steps.result.saved:  # whose gradients come in beside the solution's
            gate.judge = partial(self._judge, call, steps.value.detach(), tensors, steps.result.report)
        return gate.leave(self._from_aside(call, z0, inside, steps, gate.watch))

    def _gradient(self, call: PointCall, z0: Tensor, tensors: list[Tensor], begins: bool = False) -> Tensor:
        """The solution `(B, n)` by differentiable steps; `begins` notes how they went."""
        steps = self._run(call, z0, tensors)
        if begins:
            call.record.report, call.record.result = steps.result.report, steps.result
        return self._from_aside(call, z0, tensors, steps)

    def _run(self, call: PointCall, z0: Tensor, tensors: list[Tensor], watch: Watch | None = None) -> _Steps:
        """The solver's steps, every residual of which is watched."""
        with call.problem.bind(tensors) as residual:
            if self.checkpoint:
                residual.aside = lambda z: _evaluate(call, z, *tensors)
                residual.evaluate = lambda z, _: checkpoint(_evaluate, call, z, *tensors, use_reentrant=False)
            watched, evaluations = _watched(residual, watch)
            result = call.run(watched, z0)
            call.check_samples(residual, result)
        value = z0.clone() if result.z is z0 else result.z
        if len(evaluations) == 1:  # no step: nothing is taken of the evaluation but its graph, so that this is judged
            value = torch.where(torch.zeros_like(value, dtype=torch.bool), evaluations[0][1], value)
        return _Steps(value, result, norm(evaluations[0][1].detach()), *evaluations[-1])

    def _from_aside(
        self, call: PointCall, z0: Tensor, tensors: list[Tensor], steps: _Steps, watch: Watch | None = None
    ) -> Tensor:
        """The value, with the gradient of a solve from a little aside where its own start was nearer to it."""
        value, first, held = steps.value, steps.first, steps.value.detach()
        waiting = steps.result.report.status == Status.CONVERGED
        if not bool((first <= _farthest_aside(held)).any()):
            return value
        for aside in (ASIDE * (jolted(held) - held), ASIDE * jolted(torch.zeros_like(held))):
            near = waiting & (first <= norm(aside))
            if not bool(near.any()):
                continue
            with torch.no_grad(), call.problem.bind([tensor.detach() for tensor in tensors]) as residual:
                near = near & (10 * first <= norm(residual(held + aside)))
            if not bool(near.any()):
                continue
            start = z0 + torch.where(near.unsqueeze(1), held + aside - z0.detach(), 0)
            again = self._run(call, start, tensors, watch)
            back = norm(again.value.detach() - held) <= ASIDE * norm(aside)
            report = again.result.report
            taken = near & back & (report.status == Status.CONVERGED) & (report.steps > 0)
            value = torch.where(taken.unsqueeze(1), Lent.apply(held, again.value), value)
            waiting = waiting & ~taken
        return value

    def _judge(
        self,
        call: PointCall,
        z: Tensor,
        tensors: list[Tensor],
        forward: Report,
        grad: Tensor,
        total: Tensor,
        found: list[Tensor | None] | None,
    ) -> Report:
        """How well the steps have solved the adjoint equation, by minus `u`, and what that gave the tensors."""
        vjp, own = _linearised(call, z, tensors), _own(call, tensors, len(z))
        # Squares of small or large gradients may be zero or infinite.
        scale = largest(grad).clamp_min(torch.finfo(grad.dtype).tiny)
        product, *expected = vjp(total)
        size, gap = norm(grad / scale), norm((grad + product) / scale)

        def said(like: Sequence[Tensor | None] | None) -> Report:
            away = None if found is None or like is None else _away(found, expected, like, own)
            off = gap if away is None else torch.maximum(gap, size * away)
            status = Status.CONVERGED.where(off <= self.rtol * size, Status.MAX_STEPS)
            status = Status.NON_FINITE.unless(off < torch.inf, status)
            residual = off * scale.squeeze(1) / grad.shape[1] ** 0.5
            return UnrolledReport(status, forward.steps, residual, 1, linear=True)

        report = said(found)
        if report.converged or not found:
            return report
        # Small where samples or unknowns cancel, or where the solution does not depend on a tensor: what it is held
        # against must be neither.
        aside = _linearised(call, z + ASIDE * z * noise(z), tensors)
        return said(aside(total * noise(total).sign())[1:])

    def attach(self, call: PointCall, z: Tensor, tensors: list[Tensor]) -> Tensor:
        """An iterate has its gradient already."""
        return z


Watch = Callable[[Tensor], None]


class UnrolledReport(Report):
    """How far the gradient of the steps is that of the solution."""

    table = UNROLLED


def _farthest_aside(held: Tensor) -> Tensor:
    """More than the norm of any step aside: normal numbers times the largest entry, or one."""
    return ASIDE * (held.shape[1] ** 0.5 + 6) * torch.linalg.vector_norm(held, torch.inf).clamp_min(1)


def _evaluate(call: PointCall, z: Tensor, *tensors: Tensor) -> Any:
    """One evaluation that binds its own tensors, for it runs again in the backward pass."""
    with call.problem.bind(tensors) as residual:
        return residual.evaluate(z, None)


@dataclass(frozen=True)
class _Steps:
    """Some steps of the solver.

    Attributes:
        value: where they end, `(B, n)`.
        result: the loop's.
        first: norm of the residual at the start, `(B,)`.
        z: where the last evaluation with a graph was, `(B, n)`.
        residual: what it gave, `(B, n)`.
    """

    value: Tensor
    result: Any
    first: Tensor
    z: Tensor
    residual: Tensor


def _watched(residual: Residual, watch: Watch | None) -> tuple[Residual, list[tuple[Tensor, Tensor]]]:
    """The residual, whose values are watched, and its first and last evaluation with a graph: where, and what."""
    evaluations: list[tuple[Tensor, Tensor]] = []

    def evaluate(z: Tensor, out: Tensor | None) -> Any:
        found = residual(z, out)
        if torch.is_grad_enabled():
            evaluations[1:] = [(z, found)]
        if watch is not None:
            watch(found)
        return (found, residual.energy) if hasattr(residual, "energy") else found  # type: ignore[attr-defined]

    watched = copy(residual)
    watched.evaluate = evaluate
    return watched, evaluations


def _linearised(call: PointCall, z: Tensor, tensors: list[Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """The vector-Jacobian products of the residual at the solution, by the state and the tensors that require grad."""
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in call.unshared(tensors)]
    with torch.no_grad(), call.problem.bind(leaves) as residual:
        jacobian = Jacobian(residual, z)
    by = [jacobian.z, *(leaf for leaf in leaves if leaf.requires_grad)]

    def vjp(v: Tensor) -> list[Tensor]:
        found: Sequence[Tensor | None] = [None] * len(by)
        if jacobian.value.requires_grad:
            found = torch.autograd.grad(jacobian.value, by, v, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(leaf) if each is None else each for each, leaf in zip(found, by, strict=True)]

    return vjp


def _own(call: PointCall, tensors: list[Tensor], batch: int) -> list[bool]:
    """Whether the rows of a tensor are the samples' own, as far as its shape tells, of those that require grad."""
    assert isinstance(call.problem, Problem)
    given = [i >= call.problem.explicit.shared for i in range(len(tensors))]
    return [
        mine and tensor.dim() > 0 and len(tensor) == batch
        for mine, tensor in zip(given, tensors, strict=True)
        if tensor.requires_grad
    ]


def _away(
    found: Sequence[Tensor | None], expected: Sequence[Tensor], like: Sequence[Tensor | None], own: Sequence[bool]
) -> Tensor | None:
    """The largest error of any gradient, relative to itself or others like it: `(B,)`, a number, or None of none.

    Args:
        found: the gradients.
        expected: what they should be.
        like: others of their sizes.
        own: whether a tensor's rows are the samples' own, sample by sample.
    """
    away = None
    for got, right, other, rows in zip(found, expected, like, own, strict=True):
        if got is not None and other is not None:
            size = (
                torch.maximum(_largest(got, rows), _largest(other, rows)) if other is not got else _largest(got, rows)
            )
            part = _largest(got - right, rows) / size.clamp_min(torch.finfo(size.dtype).tiny)
            away = part if away is None else torch.maximum(away, part)
    return None if away is None else away.clamp_max(MOST)  # beside no cotangent, an infinite one would be no number


def _largest(tensor: Tensor, rows: bool) -> Tensor:
    """The largest entry, of every row `(B,)` or of all."""
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return largest(tensor.reshape(len(tensor), -1)).squeeze(1) if rows else tensor.abs().amax()

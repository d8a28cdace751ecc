"""Differentiation through the solver's own iterations."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchimplicit.adjoint.call import Adjoint, Call
from torchimplicit.adjoint.gate import Gate
from torchimplicit.core import transforms
from torchimplicit.core.independence import jolted
from torchimplicit.core.options import require
from torchimplicit.core.outcome import UNROLLED
from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import norm, scaled_norm
from torchimplicit.linear import Jacobian

ASIDE = 0.1  # how far from a solution, relative to it, steps begin whose own start was nearer still


@dataclass(frozen=True)
class Unrolled(Adjoint):
    r"""Backpropagates through every step that the solver took: memory grows with the steps.

    The derivative of the computation rather than of the solution. It lags behind the value by some steps, and a sample
    that starts at its solution takes none: such samples are therefore solved once more, from a little aside, for the
    sake of their gradient. How far the gradient is the solution's is measured: with $u$ what the steps put in the place
    of $B^{-\top} g$ for the incoming gradient $g$, the residual $g - B^\top u$ is that of `solution.backward`, for one
    vector-Jacobian product at the solution. Steps that jump there, as `Broyden` on linear maps, have put $u$ in place
    away from the solution, where the function depends on its tensors in another way: so a factor of $z$ that is zero
    is differentiated by, too, whose gradient must be $u z^*$. That asks for more than there must be where a map reaches
    its fixed point part by part, as that of `nn.as_equilibrium`: a gradient is reported that is right.

    The reference that `Implicit` is checked against, and a choice for a handful of steps or where the start `z0` needs
    a gradient. Not for deep solves (memory) nor under `torch.vmap`; under other transforms nothing is measured, nor
    with `save_steps`.

    Args:
        checkpoint: recompute the function in the backward pass instead of keeping its activations: one state per step
            instead, for one evaluation more.
        rtol: a sample's gradient has converged when $|g - B^\top u| \le$ `rtol` $|g|$, and so near is what should
            be $u z^*$; beyond it counts as having taken too few steps.
    """

    checkpoint: bool = False
    rtol: float = 1e-2

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "checkpoint", isinstance(self.checkpoint, bool), "True or False")
        require(self, "rtol", isinstance(self.rtol, float | int) and self.rtol > 0, "a number > 0")

    def solve(self, call: Call, z0: Tensor, tensors: list[Tensor]) -> Tensor:
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
        inside, offset = gate.enter(tensors, z0.new_zeros(2, *z0.shape))
        value, seen, result = self._run(call, z0, inside, offset)
        call.record.report, call.record.result = result.report, result
        product = self._linearised(call, value.detach(), tensors, inside, seen)
        lender = self._from_aside(call, z0, inside, offset, value, seen, result)
        if not result.saved:  # whose gradients come in beside the solution's
            gate.judge = partial(self._judge, product, result.report, value.detach(), seen.start)
        return gate.leave(lender)

    def _gradient(self, call: Call, z0: Tensor, tensors: list[Tensor], begins: bool = False) -> Tensor:
        """The solution `(B, n)` by differentiable steps; `begins` notes how they went."""
        value, seen, result = self._run(call, z0, tensors)
        if begins:
            call.record.report, call.record.result = result.report, result
        return self._from_aside(call, z0, tensors, None, value, seen, result)

    def _run(
        self, call: Call, z0: Tensor, tensors: list[Tensor], offset: Tensor | None = None
    ) -> tuple[Tensor, _Seen, Any]:
        """The solver's steps: where they end, what was seen of them, and the loop's result."""
        with call.problem.bind(tensors) as residual:
            if self.checkpoint:
                residual.aside = lambda z: _evaluate(call, z, *tensors)
                residual.evaluate = lambda z, _: checkpoint(_evaluate, call, z, *tensors, use_reentrant=False)
            watched, seen = _watched(residual, offset)
            result = call.run(watched, z0)
            call.check_samples(residual, result)
        return (z0.clone() if result.z is z0 else result.z), seen, result

    def _from_aside(
        self,
        call: Call,
        z0: Tensor,
        tensors: list[Tensor],
        offset: Tensor | None,
        value: Tensor,
        seen: _Seen,
        result: Any,
    ) -> Tensor:
        """The value, with the gradient of a solve from a little aside where its own start was nearer to it."""
        held, first = value.detach(), seen.first
        waiting = result.report.status == Status.CONVERGED
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
            again, _, other = self._run(call, start, tensors, offset)
            back = norm(again.detach() - held) <= ASIDE * norm(aside)
            taken = near & back & (other.report.status == Status.CONVERGED) & (other.report.steps > 0)
            value = torch.where(taken.unsqueeze(1), _lent(held, again), value)
            seen.start = torch.where(taken.unsqueeze(1), start.detach(), seen.start)
            waiting = waiting & ~taken
        return value

    def _linearised(
        self, call: Call, z: Tensor, tensors: list[Tensor], inside: list[Tensor], seen: _Seen
    ) -> Callable[[Tensor], Tensor]:
        """The vector-Jacobian product of the residual at the solution `(B, n)`; refuses captured tensors.

        From the last evaluation, which the value does not depend on, so that no backward pass takes its graph apart;
        from one more where it was somewhere else.
        """
        at, residual = seen.z, seen.residual
        if self.checkpoint or not (at.requires_grad and residual.requires_grad and torch.equal(at.detach(), z)):
            inside = [tensor.detach() for tensor in tensors]
            with torch.no_grad(), call.problem.bind(inside) as function:
                jacobian = Jacobian(function, z)
            at, residual = jacobian.z, jacobian.value
        if call.audit:
            call.problem.check_captures(residual, [*inside, at])
        return partial(transforms.vjp_of_graph, residual, at)

    def _judge(
        self,
        product: Callable[[Tensor], Tensor],
        forward: Report,
        z: Tensor,
        start: Tensor,
        grad: Tensor,
        offset: Tensor,
    ) -> Report:
        """How well the steps have solved the adjoint equation, by `-u`, and another one beside it."""
        # Squares of small or large gradients may be zero or infinite.
        scale = torch.linalg.vector_norm(grad, torch.inf, dim=1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
        grad, (u, factor) = grad / scale, offset / scale
        away = scaled_norm(factor - u * z) / scaled_norm(u * torch.maximum(z.abs(), start.abs()))
        gap = torch.maximum(norm(grad + product(u)), norm(grad) * away.nan_to_num(0.0, torch.inf))
        status = torch.where(gap <= self.rtol * norm(grad), int(Status.CONVERGED), int(Status.MAX_STEPS))
        status = torch.where(gap < torch.inf, status, int(Status.NON_FINITE))
        size = gap * scale.squeeze(1) / grad.shape[1] ** 0.5
        return UnrolledReport(status, forward.steps, size, 1, linear=True)

    def attach(self, call: Call, z: Tensor, tensors: list[Tensor]) -> Tensor:
        """An iterate has its gradient already."""
        return z


class UnrolledReport(Report):
    """How far the gradient of the steps is that of the solution."""

    table = UNROLLED


def _farthest_aside(held: Tensor) -> Tensor:
    """More than the norm of any step aside: normal numbers times the largest entry, or one."""
    return ASIDE * (held.shape[1] ** 0.5 + 6) * torch.linalg.vector_norm(held, torch.inf).clamp_min(1)


def _evaluate(call: Call, z: Tensor, *tensors: Tensor) -> Any:
    """One evaluation that binds its own tensors, for it runs again in the backward pass."""
    with call.problem.bind(tensors) as residual:
        return residual.evaluate(z, None)


@dataclass(slots=True)
class _Seen:
    """What was seen of the evaluations of some steps: the norm of the first, `(B,)`, where it was, and the last."""

    first: Tensor
    start: Tensor
    z: Tensor
    residual: Tensor


def _watched(residual: Residual, offset: Tensor | None) -> tuple[Residual, _Seen]:
    """The residual with an offset of zero and a factor of the state `(2, B, n)`, and what will be seen of its values.

    Minus the gradient of the offset is what stands for the solution of the adjoint equation, that of the factor for its
    product with the state.
    """
    seen: _Seen = _Seen.__new__(_Seen)
    shift, factor = (None, None) if offset is None else offset.unbind()

    def evaluate(z: Tensor, out: Tensor | None) -> Any:
        found = residual(z, out)
        if not hasattr(seen, "first"):
            seen.first, seen.start = norm(found.detach()), z.detach()
        seen.z, seen.residual = z, found
        found = found if shift is None or factor is None else torch.addcmul(found + shift, factor, z)
        return (found, residual.energy) if hasattr(residual, "energy") else found  # type: ignore[attr-defined]

    watched = copy(residual)
    watched.evaluate = evaluate
    return watched, seen


def _lent(value: Tensor, lender: Tensor) -> Tensor:
    """A value with the gradient of another that is next to it."""
    return lender + (value - lender).detach()

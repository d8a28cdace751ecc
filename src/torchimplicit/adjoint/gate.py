"""What goes into and comes out of a graph that autograd differentiates by itself: looked at in the backward pass.

Between `enter` and `leave` lie the steps of `Unrolled` or `Phantom`. The incoming gradient passes `leave` first, where
samples that are not finite are stopped; the tensors' gradients pass `enter` last, where they are checked, and where
the steps may be judged by what they gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchimplicit.adjoint.call import PointCall
from torchimplicit.adjoint.quarantine import all_finite, finite_gradients, warn_of_leak
from torchimplicit.core import transforms
from torchimplicit.core.status import Report, Status
from torchimplicit.linear.report import LinearReport

Steps = Callable[[PointCall, Tensor, list[Tensor]], Tensor]
Judge = Callable[[Tensor, Tensor, "list[Tensor | None] | None"], Report]


@dataclass
class Gate:
    """One graph of steps.

    Attributes:
        call: the call.
        steps: makes them, `(call, z, tensors) -> (B, n)`, differentiable by the tensors.
        z: where they start, `(B, n)`.
        tensors: the explicit tensors, with their graphs.
        grad: the incoming gradient of the backward pass under way.
        lost: which samples' were not finite, `(B,)` bool; None for none.
        judge: `(grad, total, found) -> Report` of a backward pass, from the incoming gradient, the sum of what has come
            to the watched residuals, and the gradients of the tensors that require grad, None where these are not
            finite. It must hold nothing of the steps' graph, which holds the gate. Without one there is no report but
            of samples that are not finite.
        arrived: what has come to the watched residuals in this pass, `(B, n)` each.
    """

    call: PointCall
    steps: Steps
    z: Tensor
    tensors: list[Tensor]
    grad: Tensor | None = field(default=None, repr=False)
    lost: Tensor | None = field(default=None, repr=False)
    judge: Judge | None = field(default=None, repr=False)
    arrived: list[Tensor] = field(default_factory=list, repr=False)

    def enter(self) -> list[Tensor]:
        """The tensors; the gradients of those that require grad are looked at."""
        return watched(self.tensors, self._outgoing)

    def watch(self, residual: Tensor) -> None:
        """Notes what comes to a residual of the steps, `(B, n)`: no operation, in place of an offset added to it."""
        if residual.requires_grad:
            residual.register_hook(self._arrive)

    def _arrive(self, grad: Tensor | None) -> None:
        if grad is not None and not is_mapped(grad):
            self.arrived.append(grad.detach() if grad.requires_grad else grad)

    def leave(self, lender: Tensor, value: Tensor | None = None) -> Tensor:
        """What the steps gave, `(B, n)`, or another value with its gradient."""
        self.arrived.clear()
        if value is not None:
            return _Leave.apply(self, value, lender)
        if lender.requires_grad:
            lender.register_hook(self.incoming)
        return lender

    def incoming(self, grad: Tensor) -> Tensor:
        """Takes the incoming gradient; zero for samples of which it is not finite."""
        self.arrived.clear()  # steps that differentiate, and passes that went elsewhere, have left theirs
        if is_mapped(grad):
            return grad
        self.grad, self.lost = grad, None
        if not all_finite([grad]):
            self.lost = ~grad.detach().isfinite().all(1)
            self.grad = torch.where(self.lost.unsqueeze(1), 0, grad)
        return self.grad

    def _outgoing(self, found: list[Tensor | None]) -> list[Tensor | None]:
        """Reports, and keeps samples that spoil the tensors' gradients out of them."""
        grad, self.grad = self.grad, None
        if grad is None:  # a backward pass that did not come through `leave`: that of second derivatives
            return said(found)
        fine = all_finite(found)
        if self.judge is not None or self.lost is not None or not fine:
            with torch.no_grad():  # a report holds no graph
                report = self._report(grad.detach(), found if fine else None)
            self.call.finish_backward(report)
        if torch.is_grad_enabled():  # a later pass may come through the graph of this one, and by another way
            self.judge = None
        if fine:
            return found
        wanted = [i for i, tensor in enumerate(self.tensors) if tensor.requires_grad]
        some = iter(found)
        everything = [next(some) if i in wanted else None for i in range(len(self.tensors))]
        everything = finite_gradients(self.call, self.z, self.tensors, grad, partial(self._vjp, wanted), everything)
        return [everything[i] for i in wanted]

    def _report(self, grad: Tensor, found: list[Tensor | None] | None) -> Report:
        """How the backward pass went, for an incoming gradient `(B, n)` and what it gave the tensors."""
        if self.judge is not None:
            total = torch.stack(self.arrived).sum(0) if self.arrived else torch.zeros_like(grad)
            self.arrived.clear()
            report = self.judge(grad, total, found)
        else:
            status = torch.zeros_like(grad[:, 0], dtype=torch.int64)
            unknown = torch.full_like(grad[:, 0], torch.nan)
            report = LinearReport(status, torch.zeros_like(status), unknown, 0)
        if self.lost is not None:
            report.status = Status.NON_FINITE.where(self.lost, report.status)
        return report

    def _vjp(
        self, wanted: list[int], call: PointCall, grad: Tensor, z: Tensor, tensors: list[Tensor]
    ) -> list[Tensor | None]:
        """The gradients of the tensors, by steps made again."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            inside = list(tensors) if differentiable else [tensor.detach() for tensor in tensors]
            for i in wanted:
                inside[i] = inside[i] if differentiable else inside[i].requires_grad_()
            value = self.steps(call, z.detach(), inside)
            inputs = [inside[i] for i in wanted]
            if not value.requires_grad:
                return [None] * len(tensors)
            found = torch.autograd.grad(value, inputs, grad, allow_unused=True, create_graph=differentiable)
        some = iter(found)
        return [next(some) if i in wanted else None for i in range(len(tensors))]


def is_mapped(grad: Tensor | None) -> bool:
    """Whether a gradient stands for several, of which nobody can be asked for one."""
    return grad is not None and (transforms.level(grad) >= 0 or transforms.is_mapped_by_autograd(grad))


Outgoing = Callable[[list[Tensor | None]], list[Tensor | None]]


class Enter(transforms.ForwardOnce):
    """The same tensors, whose gradients, all of them at once, pass through a function on their way out."""

    @staticmethod
    def forward(ctx: Any, outgoing: Outgoing, *inside: Tensor) -> tuple[Tensor, ...]:
        """No copies."""
        ctx.outgoing = outgoing
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in inside)

    @staticmethod
    def backward(ctx: Any, *found: Tensor | None) -> tuple[Tensor | None, ...]:
        """What the function makes of the gradients; where a transform holds many of them in one, nothing."""
        return None, *(found if any(map(is_mapped, found)) else ctx.outgoing(list(found)))

    @staticmethod
    def jvp(ctx: Any, _outgoing: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The tangents."""
        return tuple(None if tangent is None else tangent.view_as(tangent) for tangent in tangents)


def watched(tensors: Sequence[Tensor], outgoing: Outgoing) -> list[Tensor]:
    """The tensors; the gradients of those that require grad pass through a function on their way out."""
    inside, wanted = list(tensors), [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    if wanted:
        for i, tensor in zip(wanted, Enter.apply(outgoing, *(tensors[i] for i in wanted)), strict=True):
            inside[i] = tensor
    return inside


def said(found: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients as they are, with a warning where they are not finite."""
    if not all_finite(found):
        warn_of_leak()
    return found


class _Leave(transforms.ForwardOnce):
    @staticmethod
    def forward(ctx: Any, gate: Gate, value: Tensor, lender: Tensor) -> Tensor:
        ctx.gate = gate
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.gate.incoming(grad)

    @staticmethod
    def jvp(ctx: Any, _gate: None, _value: Tensor | None, tangent: Tensor) -> Tensor:
        return tangent.clone()

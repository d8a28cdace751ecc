"""The backward pass of a path, looked at where it comes in and where it goes out: see `adjoint.gate`.

Samples whose incoming gradient is not finite are stopped where they come in. Those that spoil what goes out, because
their Jacobian is not finite, are found there, and the pass is made again with healthy samples in their places.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from torchimplicit.adjoint.gate import is_mapped, said, watched
from torchimplicit.adjoint.products import Gradients
from torchimplicit.adjoint.quarantine import all_finite, find_apart, warn_of_leak
from torchimplicit.core import transforms
from torchimplicit.core.status import Status, react
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.drift import BackwardReport, DriftReport
from torchimplicit.path.call import PathCall
from torchimplicit.path.dense.result import PathResult
from torchimplicit.path.inputs import Inputs
from torchimplicit.path.jumps.stretched import integrate
from torchimplicit.path.quarantine import stand_in


@dataclass
class PathGate:
    """One solve, as autograd will go back through it.

    Attributes:
        call: the call.
        adjoint: how it is differentiated.
        inputs: what it depends on, with graphs.
        held: samples that the forward pass keeps out already, `(B,)` bool; None for none.
        came: whether a backward pass is under way.
        grad: its incoming gradient, of the outputs; None where others may have come in.
        lost: which samples' incoming gradients were not finite, `(B,)` bool; None for none.
    """

    call: PathCall
    adjoint: PathAdjoint
    inputs: Inputs
    held: Tensor | None = None
    came: bool = False
    grad: Tensor | None = field(default=None, repr=False)
    lost: Tensor | None = field(default=None, repr=False)

    def enter(self) -> Inputs:
        """The inputs, watched: those that require grad."""
        if transforms.active():
            return self.inputs
        return self.inputs.of(watched(self.inputs.everything(), self._outgoing))

    def leave(self, rows: Tensor, result: PathResult | None) -> None:
        """Watches what is given away: the outputs `(T, B, n)`; of a solve with events or dense output the rest, too."""
        self._watch(rows, 1, alone=result is None)
        if result is not None:
            self._watch(result.t, 0)
            self._watch(result.y, 0)
            for each in result.met:
                self._watch(each.t, 1)
                self._watch(each.y, 1)
            result.path.watch = self._watch

    def _watch(self, value: Tensor, batch_dim: int, alone: bool = False) -> None:
        def incoming(grad: Tensor | None) -> Tensor | None:
            if grad is None or is_mapped(grad):  # None: second derivatives that no first one depends on
                return grad
            self.came, self.lost = True, None if alone else self.lost
            if not all_finite([grad]):
                lost = ~grad.detach().isfinite().movedim(batch_dim, 0).reshape(grad.shape[batch_dim], -1).all(1)
                self.lost = lost if self.lost is None else self.lost | lost
                grad = torch.where(lost.view(-1, *(1,) * (grad.dim() - 1 - batch_dim)), 0, grad)
            self.grad = grad if alone else None
            return grad

        if value.requires_grad and not transforms.active():
            value.register_hook(incoming)

    def _outgoing(self, found: Gradients) -> Gradients:
        """Keeps samples that spoil the gradients out of them, and reports."""
        came, grad, lost = self.came, self.grad, self.lost
        self.came, self.grad, self.lost = False, None, None
        if not came:  # a pass of second derivatives
            return said(found)
        if grad is None:
            said(found)
        elif not all_finite(found):
            # Those that the forward pass keeps out are known: were they looked for, nobody would be left without them.
            held = torch.zeros_like(grad[0, :, 0], dtype=torch.bool) if self.held is None else self.held
            known = held if lost is None else held | lost
            lost, apart = find_apart(lambda nonfinite: self._without(nonfinite, grad, found), known)
            if apart is None:
                warn_of_leak()
                return found
            found, lost = apart, lost & ~held
        self._report(lost)
        return found

    def _without(self, nonfinite: Tensor, grad: Tensor, found: Gradients) -> Gradients | None:
        """The gradients with healthy samples in the place of the others; None where not all are finite."""
        if bool(nonfinite.all()):
            return [None if each is None else torch.zeros_like(each) for each in found]
        differentiable = torch.is_grad_enabled()
        everything = self.inputs.everything()
        if not differentiable:
            everything = [each.detach().requires_grad_(each.requires_grad) for each in everything]
        wanted = [each for each in everything if each.requires_grad]
        with torch.enable_grad():
            call = replace(self.call, on_failure="ignore", engine=self.call.engine.plain)
            again, healthy = stand_in(call, self.inputs.of(everything), nonfinite)
            rows = integrate(again, self.adjoint, healthy)
            grad = torch.where(nonfinite.unsqueeze(1), 0, grad)
            apart = torch.autograd.grad(rows, wanted, grad, allow_unused=True, create_graph=differentiable)
        return list(apart) if all_finite(apart) else None

    def _report(self, lost: Tensor | None) -> None:
        """Says which samples have no gradient."""
        there = self.call.record.report
        if lost is None:
            there.backward = there.backward if isinstance(there.backward, DriftReport) else None
        elif isinstance(there.backward, DriftReport):
            there.backward.status = Status.NON_FINITE.where(lost, there.backward.status)
            react(there.backward, self.call.on_failure)
        else:
            self.call.finish_backward(BackwardReport.of(self.call, self.inputs.ts[0].detach(), lost))

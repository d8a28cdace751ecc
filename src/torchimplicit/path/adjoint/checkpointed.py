"""How a path is differentiated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from torchimplicit.adjoint.products import fold, jvp, vjp
from torchimplicit.core import transforms
from torchimplicit.core.compiled.kernel import graphs_that_stay
from torchimplicit.core.options import require_count
from torchimplicit.path.adjoint.backprop import backprop
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.drift import Remade
from torchimplicit.path.adjoint.replay import note_lost, valued, whole
from torchimplicit.path.call import PathCall
from torchimplicit.path.field.dynamics import Dynamics
from torchimplicit.path.record import Path, Phase


@dataclass(frozen=True)
class Checkpointed(PathAdjoint):
    """Differentiates the very steps that were taken, from states kept on the way: the default.

    The exact derivative of the numerical solution, step sizes held, at a vector-Jacobian product for each evaluation of
    the field. The graphs of explicit steps are kept as long as they take little memory, as those of short paths and
    small networks do; `solution.report.kept` says of how many steps. The others are made again, at one more evaluation
    for each, with no more than one step's graph at a time, or that of eight of a stochastic path; with more such steps
    than checkpoints, stretches between them are made again, too. So memory does not grow with the steps of a long path.
    Second derivatives, forward mode and `vmap` work; they keep the graph of all steps.

    Args:
        checkpoints: states to keep, at least 2. As many steps cost no evaluation more; a quarter of the square of it
            costs one more evaluation for each, and so on. Fewer save memory.
        graphs: bytes that graphs may take which are kept, by what the first evaluation saves for its derivative; 0
            makes every step again. Gradients by the times, events, dense output, methods without an interpolant of
            their own and compiled steps keep none.
    """

    checkpoints: int = 256
    graphs: int = 2**26

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "checkpoints", least=2)
        require_count(self, "graphs", least=0)

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.solve`."""
        wanted = any(each.requires_grad for each in (y0, *tensors)) and not ts.requires_grad
        if wanted and call.solver.alone and not transforms.active() and isinstance(call.dynamics, Dynamics):
            call = replace(call, budget=self.graphs)
        values, starts, stops = CheckpointedSolve.apply(call, y0, ts, *tensors)
        note_lost(call, starts, stops, y0, ts, tensors)
        return values


@dataclass(frozen=True)
class Direct(PathAdjoint):
    """Differentiates the steps that were taken in one graph of them all: memory grows with the steps.

    The same gradient as `Checkpointed`, by nothing but automatic differentiation: the reference that the others are
    checked against, and a choice where many derivatives of one path are wanted. Where steps are found on the way the
    graph is of steps made again, and samples whose outputs are then others are `DRIFTED`.
    """

    checkpoints: ClassVar[int] = 2

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.solve`."""
        if call.engine.pulls:
            return _by_kernels(call, y0, ts, tensors)
        if (values := call.graph(y0, ts, tensors)) is not None:
            return values
        fixed = [each.detach() for each in (y0, ts, *tensors)]
        known, starts, stops = CheckpointedSolve.held(call, *fixed)
        values = whole(call, starts, stops, y0, ts, tensors)
        if transforms.active():
            return valued(known, values)
        found = values.detach().isfinite().all(2).all(0)
        call.record.lose(~found)
        _meet(call, fixed[0], fixed[1], known, values)
        return torch.where(found.unsqueeze(1), valued(known, values), known)


def _meet(call: PathCall, y0: Tensor, ts: Tensor, known: Tensor, values: Tensor) -> None:
    """Has the backward pass say which samples' steps, made again, have led to other `values` than are `known`."""
    remade = Remade(call.solver, y0)
    rows = torch.arange(len(y0), device=y0.device).repeat(len(ts))
    before, made, expected = (each.flatten(0, 1) for each in (y0.expand_as(known), values.detach(), known))
    remade.meet(rows, before, made, expected)
    if values.requires_grad and remade.any_far:
        values.register_hook(lambda grad: call.finish_backward(remade.report(call, ts[0])))


def _by_kernels(call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
    """The outputs, with the graph of kernels; as by `Checkpointed` where there is none, with a state before each."""
    if not transforms.differentiating([ts]):
        leaves, phase = [each.detach().requires_grad_(each.requires_grad) for each in (y0, *tensors)], Phase(None, 2)
        if (values := call.graph(leaves[0], ts, leaves[1:], phase)) is not None:
            return KernelsInAGraph.apply(call, [values], leaves, *Path([phase]).times(ts), y0, ts, *tensors)
    return Checkpointed().solve(replace(call, checkpoints=sys.maxsize), y0, ts, tensors)


class KernelsInAGraph(Function):
    """Outputs `(T, B, n)` that kernels have made in a graph of their own, which derivatives of first order go through.

    Those of higher order, which kernels do not have, go through the steps made again.
    """

    @staticmethod
    def forward(
        call: PathCall, values: list[Tensor], leaves: list[Tensor], starts: Tensor, stops: Tensor, *inputs: Tensor
    ) -> Tensor:
        """The outputs; `values` are these with their graph, taken out of the list."""
        return values[0].detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps the graph for as long as autograd keeps what it saves."""
        ctx.call, values, ctx.leaves, *rest = inputs
        ctx.save_for_backward(values.pop(), *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the start and of the tensors."""
        values, starts, stops, *inputs = ctx.saved_tensors
        needs = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled() or transforms.level(grad) >= 0:
            return *(None,) * 5, *vjp(_again(ctx.call, starts, stops), inputs, needs, grad)
        wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        with graphs_that_stay():
            rest = iter(torch.autograd.grad(values, wanted, grad, retain_graph=True, allow_unused=True))
        y0, *found = (next(rest) if leaf.requires_grad else None for leaf in ctx.leaves)
        return *(None,) * 5, y0, None, *found


class CheckpointedSolve(transforms.ForwardOnce):
    """The outputs `(T, B, n)`, and the times before and after every step, `(S, B)` each."""

    @staticmethod
    def forward(call: PathCall, y0: Tensor, ts: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solves; nothing of it is recorded."""
        values = call.forward(y0, ts, tensors)
        assert call.record.path is not None
        return values, *call.record.path.times(ts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keeps the inputs and the path."""
        ctx.call, y0, ts, *tensors = inputs
        values, starts, stops = output
        ctx.mark_non_differentiable(starts, stops)
        ctx.set_materialize_grads(False)  # of the times of all steps
        tensors, states, known = ctx.call.unshared(tensors), [], None
        if ctx.call.record.path is not None:
            ctx.path, states = ctx.call.record.take_path().part()
            known = values if ctx.path.short else None
        ctx.states = len(states)
        ctx.save_for_backward(*states, known, y0, ts, starts, stops, *tensors)
        ctx.save_for_forward(y0, ts, starts, stops, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _starts: None, _stops: None) -> tuple[Tensor | None, ...]:
        """The gradients of the start, the times and the tensors."""
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors
        states, (known, y0, ts, starts, stops, *tensors) = saved[: ctx.states], saved[ctx.states :]
        # Second derivatives, or a transform: the pass itself must be differentiable, as one graph of all steps is.
        if torch.is_grad_enabled() or transforms.level(grad) >= 0:
            return None, *vjp(_again(ctx.call, starts, stops), (y0, ts, *tensors), ctx.needs_input_grad[1:], grad)
        _, needs_y0, *needs = ctx.needs_input_grad
        known = None if known is None else known.detach()
        cotangent, *found = backprop(ctx.call, ctx.path.joined(states), ts, tensors, needs, grad, known=known)
        return None, cotangent if needs_y0 else None, *found

    @staticmethod
    def jvp(ctx: Any, _call: None, *tangents: Tensor | None) -> tuple[Tensor, None, None]:
        """The derivative along tangents of the inputs."""
        y0, ts, starts, stops, *tensors = ctx.saved_tensors
        return jvp(_again(ctx.call, starts, stops), (y0, ts, *tensors), tangents), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: PathCall, y0: Tensor, ts: Tensor, *tensors: Tensor) -> tuple:
        """The mapped dimension joins the batch."""
        _, y0_dim, ts_dim, *dims = in_dims
        count = info.batch_size
        front = ts.expand(count, *ts.shape) if ts_dim is None else ts.movedim(ts_dim, 0)
        found = CheckpointedSolve.apply(
            call.mapped(count, dims), fold(y0, y0_dim, count), front.movedim(0, 1).flatten(1), *tensors
        )
        return tuple(each.unflatten(1, (count, -1)) for each in found), (1, 1, 1)


def _again(call: PathCall, starts: Tensor, stops: Tensor) -> Callable[..., Tensor]:
    def outputs(y0: Tensor, ts: Tensor, *tensors: Tensor) -> Tensor:
        return whole(call, starts, stops, y0, ts, tensors)

    return outputs

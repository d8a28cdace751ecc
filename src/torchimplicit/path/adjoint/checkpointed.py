"""How a path is differentiated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.adjoint.products import fold, jvp, vjp
from torchimplicit.core import transforms
from torchimplicit.core.options import require_count
from torchimplicit.path.adjoint.backprop import backprop
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.replay import note_lost, valued, whole
from torchimplicit.path.call import PathCall


@dataclass(frozen=True)
class Checkpointed(PathAdjoint):
    """Differentiates the very steps that were taken, from states kept on the way: the default.

    The exact derivative of the numerical solution, step sizes held, at one more evaluation of the field for each, plus
    its vector-Jacobian product: no graph is ever kept but that of one step, or of eight of a stochastic path. With
    more steps than checkpoints, stretches between them are made again. Second derivatives, forward mode and `vmap`
    work; they keep the graph of all steps.

    Args:
        checkpoints: states to keep, at least 2. As many steps cost no evaluation more; a quarter of the square of it
            costs one more evaluation for each, and so on. Fewer save memory.
    """

    checkpoints: int = 256

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "checkpoints", least=2)

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.solve`."""
        values, starts, stops = CheckpointedSolve.apply(call, y0, ts, *tensors)
        note_lost(call, starts, stops, y0, ts, tensors)
        return values


@dataclass(frozen=True)
class Direct(PathAdjoint):
    """Differentiates the steps that were taken in one graph of them all: memory grows with the steps.

    The same gradient as `Checkpointed`, by nothing but automatic differentiation: the reference that the others are
    checked against, and a choice where many derivatives of one path are wanted. Steps of kernels, which
    have no graph, are differentiated as by `Checkpointed`, from a state kept before each kernel.
    """

    checkpoints: ClassVar[int] = 2

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.solve`."""
        if call.engine.pulls:
            return Checkpointed().solve(replace(call, checkpoints=sys.maxsize), y0, ts, tensors)
        if (values := call.graph(y0, ts, tensors)) is not None:
            return values
        fixed = [each.detach() for each in (y0, ts, *tensors)]
        known, starts, stops = CheckpointedSolve.held(call, *fixed)
        values = whole(call, starts, stops, y0, ts, tensors)
        if transforms.active():
            return valued(known, values)
        found = values.detach().isfinite().all(2).all(0)
        call.record.lose(~found)
        return torch.where(found.unsqueeze(1), valued(known, values), known)


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
        _, starts, stops = output
        ctx.mark_non_differentiable(starts, stops)
        ctx.set_materialize_grads(False)  # of the times of all steps
        tensors, states = ctx.call.unshared(tensors), []
        if ctx.call.record.path is not None:
            ctx.path, states = ctx.call.record.take_path().part()
        ctx.states = len(states)
        ctx.save_for_backward(*states, y0, ts, starts, stops, *tensors)
        ctx.save_for_forward(y0, ts, starts, stops, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _starts: None, _stops: None) -> tuple[Tensor | None, ...]:
        """The gradients of the start, the times and the tensors."""
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        states, (y0, ts, starts, stops, *tensors) = ctx.saved_tensors[: ctx.states], ctx.saved_tensors[ctx.states :]
        # Second derivatives, or a transform: the pass itself must be differentiable, as one graph of all steps is.
        if torch.is_grad_enabled() or transforms.level(grad) >= 0:
            return None, *vjp(_again(ctx.call, starts, stops), (y0, ts, *tensors), ctx.needs_input_grad[1:], grad)
        _, needs_y0, *needs = ctx.needs_input_grad
        cotangent, *found = backprop(ctx.call, ctx.path.joined(states), ts, tensors, needs, grad)
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

"""A recorded solve evaluated afterwards, at any time: the steps that are asked for, made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchimplicit.adjoint.products import jvp, vjp
from torchimplicit.core import transforms
from torchimplicit.path.adjoint.backprop import backprop
from torchimplicit.path.adjoint.replay import relevant, remake, valued
from torchimplicit.path.call import PathCall
from torchimplicit.path.query import Query
from torchimplicit.path.record import Path
from torchimplicit.path.remake import make_step, padded


@dataclass(frozen=True)
class RecordedPath:
    """A recorded solve with what it depends on; times as solvers count them.

    Attributes:
        call: the call that was solved.
        path: its record.
        starts: times before every step, `(S, B)`.
        stops: times after it.
        y0: states at the first time, `(B, n)`, with their graph, as for the next two.
        ts: the times that the solve was for, `(T, B)`.
        tensors: the explicit tensors.
        in_one: whether to differentiate in one graph of all steps.
    """

    call: PathCall
    path: Path
    starts: Tensor
    stops: Tensor
    y0: Tensor
    ts: Tensor
    tensors: tuple[Tensor, ...]
    in_one: bool

    def detach(self) -> RecordedPath:
        """The same without a gradient."""
        tensors = tuple(tensor.detach() for tensor in self.tensors)
        return replace(self, y0=self.y0.detach(), ts=self.ts.detach(), tensors=tensors)

    def at(self, at: Tensor, order: int = 0, known: Tensor | None = None) -> Tensor:
        """States and their derivatives by time, up to an order, side by side, `(K, B, (1 + order) n)`.

        Args:
            at: times that were reached, `(K, B)`, in any order.
            order: how many derivatives.
            known: the states at the first of them, `(K', B, n)`, should they be known: spares the steps. These carry
                no derivatives but zeros.
        """
        if self.in_one and torch.is_grad_enabled():
            plain = 0 if known is None else len(known)
            found = evaluate_in_one(
                self.call, self.starts, self.stops, self.y0, self.ts, at, self.tensors, order, plain
            )
            with torch.no_grad():
                value = self.detach().at(at.detach(), order, known)
            return valued(value, found)
        return Evaluate.apply(
            self.call, self.path, order, self.starts, self.stops, known, self.y0, self.ts, at, *self.tensors
        )


@dataclass(frozen=True)
class MaskedPath:
    """A recorded path of which some samples are held, without a gradient, while healthy ones stand in their place.

    Attributes:
        held: that of all samples, or a chain of such, detached.
        healthy: that of the healthy ones and of those that stand in.
        nonfinite: which samples are held, `(B,)`.
    """

    held: Any
    healthy: Any
    nonfinite: Tensor

    @property
    def y0(self) -> Tensor:
        """See `RecordedPath`."""
        return torch.where(self.nonfinite.unsqueeze(1), self.held.y0, self.healthy.y0)

    @property
    def ts(self) -> Tensor:
        """See `RecordedPath`."""
        return torch.where(self.nonfinite, self.held.ts, self.healthy.ts)

    def at(self, at: Tensor, order: int = 0) -> Tensor:
        """See `RecordedPath.at`."""
        with torch.no_grad():
            held = self.held.at(at.detach(), order)
        found = self.healthy.at(torch.where(self.nonfinite, self.healthy.ts[0].detach(), at), order)
        return torch.where(self.nonfinite.unsqueeze(1), held, found)


class RecordedSolve(Function):
    """Outputs `(T, B, n)`, times around every step, `(S, B)` each, times reached, which events ended it, crossings."""

    @staticmethod
    def forward(call: PathCall, count: int, y0: Tensor, ts: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Solves; the first `count` tensors are the dynamics', the others the events'."""
        values = call.forward(y0, ts, tensors[:count], tensors[count:])
        record = call.record
        assert record.path is not None
        event = torch.full_like(record.reached, -1, dtype=torch.int64) if record.event is None else record.event
        met = [each for one in record.met for each in one]
        return values, *record.path.times(ts), record.reached.clone(), event.clone(), *met

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Nothing here is differentiable."""
        ctx.outputs = len(output)
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: None) -> tuple[None, ...]:
        """Never called for."""
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, ...]:
        """Never called for."""
        return (None,) * ctx.outputs

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple:
        """Refused."""
        raise _unmapped(inputs[0])


class Evaluate(transforms.ForwardOnce):
    """`RecordedPath.at`, differentiated from the states kept on the way, step by step; all at once at higher orders."""

    @staticmethod
    def forward(
        call: PathCall, path: Path, order: int, starts: Tensor, stops: Tensor, known: Tensor | None,
        y0: Tensor, ts: Tensor, at: Tensor, *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        """Makes the steps again that are asked for."""
        if known is not None and len(known) == len(at):
            return padded(known.clone(), order)
        plain = 0 if known is None else len(known)
        with torch.no_grad():
            found = _evaluated(call, path, Query.at(path, ts, at[plain:], order), y0, ts, at[plain:], tensors)
        return found if known is None else torch.cat((padded(known, order), found))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keeps the inputs; the path itself is kept by whoever looks."""
        ctx.call, ctx.path, ctx.order, starts, stops, known, y0, ts, at, *tensors = inputs
        ctx.plain = 0 if known is None else len(known)
        tensors = ctx.call.unshared(tensors)
        ctx.save_for_backward(starts, stops, y0, ts, at, *tensors)
        ctx.save_for_forward(starts, stops, y0, ts, at, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the start, the times of the solve, those asked for, and the tensors."""
        starts, stops, y0, ts, at, *tensors = ctx.saved_tensors
        needs_y0, needs_ts, needs_at, *needs = ctx.needs_input_grad[6:]
        if torch.is_grad_enabled() or transforms.level(grad) >= 0:
            function = _again(ctx.call, starts, stops, ctx.order, ctx.plain)
            return (None,) * 6 + tuple(vjp(function, (y0, ts, at, *tensors), ctx.needs_input_grad[6:], grad))
        given, query = len(ts), Query.at(ctx.path, ts, at, ctx.order, ctx.plain)
        grad, needs = torch.cat((grad.new_zeros(given, *grad.shape[1:]), grad)), [needs_ts or needs_at, *needs]
        cotangent, times, *found = backprop(ctx.call, ctx.path, torch.cat((ts, at)), tensors, needs, grad, query)
        by_ts, by_at = (None, None) if times is None else (times[:given], times[given:])
        return (None,) * 6 + (cotangent if needs_y0 else None, by_ts, by_at, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """The derivative along tangents of the inputs."""
        starts, stops, *inputs = ctx.saved_tensors
        return jvp(_again(ctx.call, starts, stops, ctx.order, ctx.plain), inputs, tangents[6:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple:
        """Refused."""
        raise _unmapped(inputs[0])


def _unmapped(call: PathCall) -> RuntimeError:
    return RuntimeError(
        f"{call.name}(event=..., dense=...): got torch.vmap, expected a batch in dimension 0 of the state, of which "
        "every sample has its own event and steps already; try that, or a loop"
    )


def _again(call: PathCall, starts: Tensor, stops: Tensor, order: int, plain: int) -> Callable[..., Tensor]:
    def states(y0: Tensor, ts: Tensor, at: Tensor, *tensors: Tensor) -> Tensor:
        return evaluate_in_one(call, starts, stops, y0, ts, at, tensors, order, plain)

    return states


def evaluate_in_one(
    call: PathCall, starts: Tensor, stops: Tensor, y0: Tensor, ts: Tensor, at: Tensor, tensors: Sequence[Tensor],
    order: int, plain: int,
) -> Tensor:  # fmt: skip
    """As `RecordedPath.at`, all steps in one graph that every transform can go through.

    The first `plain` times carry no derivatives.
    """
    everybody = torch.arange(len(y0), device=y0.device)
    values = [padded(y0, order)] * len(at)
    with call.bind(ts, call.unshared(tensors)) as field, torch.enable_grad():
        for step in remake(call, field, starts, stops, y0, ts):
            after_start = (at > step.before) | ((at <= ts[0]) & (step.before <= ts[0]))
            within = after_start & (at <= step.after) & (step.after > step.before)
            for place in relevant(within):
                theta = step.theta(at[place])
                value = step.done.inside.series(theta, everybody, 0 if place < plain else order)
                value = padded(value, order) if place < plain else value
                values[place] = torch.where(within[place].unsqueeze(1), value, values[place])
    return torch.stack(values)


def _evaluated(
    call: PathCall, path: Path, query: Query, y0: Tensor, ts: Tensor, at: Tensor, tensors: Sequence[Tensor]
) -> Tensor:
    """What is asked of a path, from the states that it keeps, with no step made that is not needed."""
    values = y0.new_zeros((*at.shape, (1 + query.order) * y0.shape[1]))
    times, tensors = torch.cat((ts, at)), call.unshared(tensors)
    if query.held is not None:
        values[query.held.places - len(ts), query.held.samples, : y0.shape[1]] = y0[query.held.samples]
    for phase, outputs in zip(path.phases, query.outputs, strict=True):
        rows, y = phase.rows, y0
        own = times if rows is None else times[:, rows]
        with call.bind(own, call.dynamics.take(tensors, rows), rows, len(ts) - 1) as field:
            stepper = call.solver.stepper(phase.states[0], graph=False)
            for number, kept in phase.forwards(sorted(outputs)):
                y = y if kept is None else kept
                if call.solver.remembers:  # of this step alone, whatever else is asked for
                    stepper = call.solver.stepper(y, graph=False)
                within = outputs.get(number)
                y, found = make_step(stepper, field, phase.steps[number], y, own, query, within)
                if within is not None and found is not None:
                    samples = within.samples if rows is None else rows[within.samples]
                    values[within.places - len(ts), samples] = found
    return values

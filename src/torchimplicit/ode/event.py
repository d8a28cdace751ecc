"""Events: where a condition on the path changes its sign, and the walk of that sample ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import require
from torchimplicit.ode.crossing import crossing
from torchimplicit.ode.dynamics import Dynamics
from torchimplicit.ode.span import Span

if TYPE_CHECKING:
    from torchimplicit.ode.step import Inside
    from torchimplicit.ode.traveller import Traveller

Condition = Callable[[Tensor, Tensor], Tensor]  # of times (B,) and flat states (B, n); a number per sample

ROUNDINGS = 64  # of time and state, within which an event is where a walk starts


@dataclass(frozen=True)
class Event:
    r"""Ends the walk of a sample where $g(t, y, a)$, its `condition`, changes sign.

    The crossing is found on the interpolant of the step that it lies in, to rounding. Its time $t^*$ and state are
    differentiable by all that the path and the condition depend on, the condition's own parameters $\theta$ included:
    $dt^* = -(g_\theta\, d\theta + g_y\, dy) / (g_t + g_y\, \dot y)$ (R. Chen, B. Amos, M. Nickel, arXiv:2011.03902,
    section 3), exact for the steps taken, to second order.

    A condition that is zero at the first time, to the rounding of time and state, counts as one that has just been met:
    it does not fire there, so that a ball can leave the ground from the `event_state` that it came to. Signs are
    compared at the ends of steps: two crossings within one step are not seen (try a smaller `dt` or a tighter `rtol`),
    nor is a condition that touches zero and turns back. Where the path grazes the condition,
    $g_t + g_y \dot y = 0$, the time has no derivative: an error, but under `no_grad`. A condition that has not fired
    and is NaN or infinite in the end fails its sample.

    Args:
        condition: `condition(t, y, *args) -> (B,)`, a real number per sample, of the arguments that `f` gets; one
            number, of shape `()`, with `steps="joint"`. Tensors that shall get a gradient are arguments, or parameters
            of the condition where that is an `nn.Module`.
        direction: 1 for crossings from below zero to above, -1 from above to below, 0 for both; as the path is walked,
            whichever way time runs.

    Examples:
        A ball dropped from a height of 5 hits the ground after sqrt(2 * 5 / g).

        >>> import torch, torchimplicit as ti
        >>> g = torch.tensor(10.0, requires_grad=True)
        >>> fall = lambda t, y, g: torch.stack((y[:, 1], -g.expand(len(y))), 1)
        >>> ground = ti.Event(lambda t, y, g: y[:, 0], direction=-1)
        >>> sol = ti.odeint(fall, torch.tensor([[5.0, 0.0]]), torch.tensor([0.0, 9.0]), g, event=ground)
        >>> round(sol.event_time.item(), 4)
        1.0
        >>> sol.event_time.sum().backward()
        >>> round(g.grad.item(), 4)  # -sqrt(2 * 5 / g**3) / 2
        -0.05
    """

    condition: Callable
    direction: int = 0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "condition", callable(self.condition), "a callable condition(t, y, *args)")
        require(self, "direction", self.direction in (-1, 0, 1), "1 (upward), -1 (downward) or 0 (both)")


class Trigger(Dynamics):
    """An event's condition, its tensors explicit, of the flat state and of the time as solvers count it.

    Args:
        event: the event.
        y0: the initial state, nested.
        args: further arguments of the condition.
        batch_dims: see `Problem`.
        batched_args: see `Problem`.
        backward: see `Dynamics`.
    """

    form: ClassVar[str] = "condition(t, y, *args)"

    def __init__(self, event: Event, y0: Any, args: tuple, batch_dims: int, batched_args: Any, backward: Tensor | None):
        """Makes the condition explicit; evaluates nothing."""
        super().__init__(event.condition, y0, args, batch_dims, batched_args, backward)
        self.direction = event.direction

    def check(self, value: Any) -> None:
        """One real number per sample."""
        shape = (self.layout.batch,) if self.batch_dims else ()
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TypeError(
                f"the event's condition returned {got}, expected a real floating tensor of shape {shape}, whose sign "
                "changes at the event; try y[:, 0] - threshold in place of y[:, 0] > threshold"
            )
        if value.shape != shape:
            hint = "try flatten()" if self.batch_dims else 'the batch has one clock: try amin(), or steps="per-sample"'
            raise ValueError(
                f"the event's condition returned shape {tuple(value.shape)}, expected {shape}, one number "
                f"{'per sample' if self.batch_dims else 'in all'}; {hint}"
            )

    @contextmanager
    def bind(  # type: ignore[override]
        self, tensors: Any, audit: bool = False, keep_buffers: bool = False, rows: Tensor | None = None
    ) -> Iterator[Condition]:
        """The condition with these tensors in place; see `Dynamics.bind`."""
        tensors = [tensor.detach() for tensor in tensors] if audit else list(tensors)
        layout = self.layout if rows is None else self.layout.of_batch(len(rows))
        first = True

        def value_at(t: Tensor, y: Tensor) -> Tensor:
            t = self.user_time(t, rows).to(self.time_dtype)
            return function(t.view(self.time_shape), layout.unflatten(y))

        def condition(t: Tensor, y: Tensor) -> Tensor:
            nonlocal first
            looked_at, first = not (first and rows is None), False
            value = value_at(t, y) if looked_at else self.evaluate_first(lambda: value_at(t, y), y, audited)
            return value.view(-1).to(t.dtype)

        audited = tensors if audit else None
        with self.explicit.bind(tensors, keep_buffers) as bound, self.autocast.off():
            function = self.autocast.around(bound)
            yield condition


class Halt(NamedTuple):
    """Samples whose event fired within a step: which, `(B,)`, and every sample's place in it, times and states."""

    fires: Tensor
    t: Tensor
    y: Tensor


class Watch:
    """Looks out for the event of the samples of a walk, whose sides of it are kept in their `Traveller`.

    Args:
        condition: bound.
        direction: see `Event`.
    """

    def __init__(self, condition: Condition, direction: int):
        self.condition, self.direction = condition, direction

    def begin(self, who: Traveller, slope: Tensor, stop: Tensor) -> None:
        """On which side every sample starts: the one that it moves to where it starts at zero.

        Args:
            who: where they stand.
            slope: the slopes there, `(B, n)`.
            stop: where the first step ends, `(B,)`; the probe is a small part of it.
        """
        value, eps = self.condition(who.t, who.y), torch.finfo(who.t.dtype).eps
        h = stop - who.t
        ahead = eps**0.25 * h
        change = self.condition(who.t + ahead, torch.addcmul(who.y, ahead.to(who.y.dtype).unsqueeze(1), slope)) - value
        moved = change.abs() * ((who.t.abs() + h) / ahead)
        met = value.abs() <= ROUNDINGS * eps * (moved + self._sway(who, value))
        who.side, who.fired = torch.where(met, change, value).sign(), torch.zeros_like(who.running)

    def _sway(self, who: Traveller, value: Tensor) -> Tensor:
        """How much the condition changes by where every unknown changes by about its size, `(B,)`."""
        root = torch.finfo(who.y.dtype).eps ** 0.5
        places = torch.arange(who.y.shape[1], dtype=who.y.dtype, device=who.y.device)
        apart = 1 + root * (1 + (0.618034 * places).frac())  # by no common factor, for their changes might cancel
        return (self.condition(who.t, who.y * apart) - value).abs() / root

    def sees(self, who: Traveller, stop: Tensor, y: Tensor) -> Tensor:
        """Which samples would meet their event in a step to this time and state, `(B,)`; moves nothing."""
        assert who.side is not None
        self.ends = self.condition(stop, y)
        crosses = (who.side * self.ends <= 0) & (who.side != 0) & who.running
        self.fires = crosses if self.direction == 0 else crosses & (who.side == -self.direction)
        return self.fires

    def passes(self, who: Traveller, accept: Tensor) -> None:
        """The samples that accept the step are on the side where it ends."""
        assert who.side is not None
        moved = accept & (self.ends != 0) & ~self.ends.isnan()
        who.side = torch.where(moved, self.ends.sign(), who.side)

    def halt(self, who: Traveller, accept: Tensor, inside: Inside) -> Halt | None:
        """Where within an accepted step the events are; None where no sample meets its own."""
        fires = self.fires & accept
        if not bool(fires.any()):
            return None
        assert who.side is not None
        assert who.fired is not None
        everybody, span = torch.arange(len(accept), device=accept.device), inside.span

        def value(part: Tensor) -> Tensor:
            return self.condition(span.at(part), inside.polynomial(part, everybody))

        low = value(torch.zeros_like(who.t))
        # At a start at zero, rounding may have given it the wrong sign: it counts as one on its side of the event.
        part = crossing(value, torch.where(low * who.side > 0, low, who.side * self.ends.abs()), self.ends, fires)
        who.fired = who.fired | fires
        y, slope = inside.series(part, everybody, 1).chunk(2, dim=1)
        return Halt(fires, span.at(part), self._onto(span, span.at(part), y, slope))

    def _onto(self, span: Span, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """States `(B, n)` moved along their slopes onto the condition: by roundings of the path, larger than its own.

        So a walk that starts from there starts at zero.
        """
        eps = torch.finfo(t.dtype).eps
        probe, most = eps**0.25 * span.h, ROUNDINGS * eps * (t.abs() + span.h)
        value = self.condition(t, y)
        for _ in range(2):
            rate = (self.condition(t, torch.addcmul(y, probe.to(y.dtype).unsqueeze(1), slope)) - value) / probe
            move = -value / rate
            moved = torch.addcmul(y, move.to(y.dtype).unsqueeze(1), slope)
            there = self.condition(t, moved)
            better = (move.abs() <= most) & (there.abs() < value.abs())
            y, value = torch.where(better.unsqueeze(1), moved, y), torch.where(better, there, value)
        return y


def differentiated(condition: Condition, t: Tensor, series: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
    """Times `(B,)` and states `(B, n)` of events, differentiable by what condition and path depend on, twice.

    Two steps of Newton's method for the root of the condition along the path. They change no value, for they start at
    the root, but carry its derivatives, exact to second order.

    Args:
        condition: bound, to tensors with their graphs.
        t: the times, detached, `(B,)`.
        series: the path's states there and their first two derivatives by time, with their graphs, `(B, 3 n)`.
        fired: which samples have an event, `(B,)`; the others get the state at their time.

    Raises:
        ValueError: the path grazes the condition, so that the time has no derivative.
    """
    y, slope, bend = series.chunk(3, dim=1)

    def state(later: Tensor) -> Tensor:
        later = later.to(y.dtype).unsqueeze(1)
        return y + later * (slope + 0.5 * later * bend)

    def value(later: Tensor) -> Tensor:
        return condition(t + later, state(later))

    later = torch.zeros_like(t)
    for _ in range(2):
        rate = torch.where(fired, _slope(value, later), 1.0)
        if not transforms.active() and bool((rate == 0).any()):
            sample = int(torch.nonzero(rate == 0)[0])
            raise ValueError(
                f"event: the condition of sample {sample} does not change along the path at its event, so that the "
                "event's time has no derivative; expected a condition that crosses zero at a rate; try another one, or "
                "torch.no_grad() around odeint"
            )
        step = torch.where(fired, value(later), 0.0) / rate
        later = later - (step - step.detach())
    return t + later, state(later)


def _slope(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The derivative of every sample's number by its own argument, `(B,)`, itself differentiable."""

    def total(at: Tensor) -> Tensor:
        return value(at).sum()

    if transforms.active():
        return torch.func.grad(total)(at)
    at = at if at.requires_grad else at.detach().requires_grad_()
    return torch.autograd.grad(total(at), at, create_graph=True)[0]

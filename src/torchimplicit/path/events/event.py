"""Events: where a condition on the path changes its sign."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from torchimplicit.core.explicit import modules_behind
from torchimplicit.core.options import is_number, require
from torchimplicit.core.tree import Layout
from torchimplicit.path.field.dynamics import Dynamics

Condition = Callable[[Tensor, Tensor], Tensor]  # of times (B,) and flat states (B, n); a number per sample


@dataclass(frozen=True)
class Event:
    r"""Where $g(t, y, a)$, its `condition`, changes sign: ends the solve of that sample, or is noted on the way.

    The crossing is found on the interpolant of the step that it lies in, to rounding. Its time $t^*$ and state are
    differentiable by all that the path and the condition depend on, the condition's own parameters $\theta$ included:
    $dt^* = -(g_\theta\, d\theta + g_y\, dy) / (g_t + g_y\, \dot y)$ (R. Chen, B. Amos, M. Nickel, arXiv:2011.03902,
    section 3), exact for the steps taken, to second order.

    A condition that is zero at the first time, to the rounding of time and state, counts as one that has just been met:
    it does not fire there, so that a ball can leave the ground from the `event_state` that it came to. A dose that
    carries the condition to zero or past it (`odeint(doses=...)`) is a crossing at the time of the dose. Signs are
    compared at the ends of steps: two crossings within one step are not seen (try a smaller `dt` or a tighter `rtol`),
    nor is a condition that touches zero and turns back. Where the path grazes the condition,
    $g_t + g_y \dot y = 0$, the time has no derivative: an error, but under `no_grad`. A condition that has not fired
    and is NaN or infinite in the end fails its sample.

    Args:
        condition: `condition(t, y, *args) -> (B,)`, a real number per sample, of the arguments that `f` gets; one
            number, of shape `()`, with `stepping="joint"`. Tensors that shall get a gradient are arguments, or
            parameters of the condition where that is an `nn.Module`.
        direction: 1 for crossings from below zero to above, -1 from above to below, 0 for both; in the order of the
            solve, whichever way time runs.
        terminal: whether the solve of a sample ends there. Where it does not, every crossing is in
            `solution.crossings`, with a gradient like that of an end, and the path is the one without the event.

    Examples:
        A ball dropped from a height of 5 hits the ground after sqrt(2 * 5 / g).

        >>> import torch, torchimplicit as ti
        >>> g = torch.tensor(10.0, requires_grad=True)
        >>> fall = lambda t, y, g: torch.stack((y[:, 1], -g.expand(len(y))), 1)
        >>> ground = ti.Event(lambda t, y, g: y[:, 0], direction=-1)
        >>> sol = ti.odeint(
        ...     fall, torch.tensor([[5.0, 0.0]]), torch.tensor([0.0, 9.0]), g, event=ground
        ... )
        >>> round(sol.event_time.item(), 4)
        1.0
        >>> sol.event_time.sum().backward()
        >>> round(g.grad.item(), 4)  # -sqrt(2 * 5 / g**3) / 2
        -0.05
    """

    condition: Callable
    direction: int = 0
    terminal: bool = True

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "condition", callable(self.condition), "a callable condition(t, y, *args)")
        known = is_number(self.direction) and self.direction in (-1, 0, 1)
        require(self, "direction", known, "1 (upward), -1 (downward) or 0 (both)")
        require(self, "terminal", isinstance(self.terminal, bool), "True or False")


class Together(nn.Module):
    """The conditions of several events as one function, whose tensors are explicit together.

    Args:
        conditions: `condition(t, y, *args)` each.
    """

    def __init__(self, conditions: Sequence[Callable]):
        super().__init__()
        self.conditions = tuple(conditions)
        self.owners = nn.ModuleList(module for each in conditions for module in modules_behind(each))

    def forward(self, t: Tensor, y: Any, *args: Any) -> tuple:
        """What each of them returns."""
        return tuple(condition(t, y, *args) for condition in self.conditions)


class Conditions(NamedTuple):
    """Bound conditions, of times `(B,)` and flat states `(B, n)`: of all events, `(B, E)`, and of each, `(B,)`."""

    of_all: Condition
    each: Sequence[Condition]


class Trigger(Dynamics):
    """The conditions of events, their tensors explicit, of the flat state and of the time as solvers count it.

    Args:
        events: the events, at least one.
        y0: the initial state, nested.
        args: further arguments of the conditions.
        batch_dims: see `Problem`.
        batched_args: see `Problem`.
        backward: see `Dynamics`.
        layout: see `Problem`.
    """

    form: ClassVar[str] = "condition(t, y, *args)"

    def __init__(
        self, events: Sequence[Event], y0: Any, args: tuple, batch_dims: int, batched_args: Any,
        backward: Tensor | None, layout: Layout | None = None,
    ):  # fmt: skip
        """Makes the conditions explicit; evaluates nothing."""
        self.events = tuple(events)
        conditions = Together([event.condition for event in events])
        super().__init__(conditions, y0, args, batch_dims, batched_args, backward, layout)
        self.directions = torch.tensor([event.direction for event in events], device=self.layout.device)

    def check(self, value: Any) -> None:
        """One real number per sample from each."""
        for i, one in enumerate(value):
            self._check_one(f"the event's condition{'' if len(value) == 1 else f' (event[{i}])'}", one)

    def _check_one(self, name: str, value: Any) -> None:
        shape = (self.layout.batch,) if self.batch_dims else ()
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TypeError(
                f"{name} returned {got}, expected a real floating tensor of shape {shape}, whose sign "
                "changes at the event; try y[:, 0] - threshold in place of y[:, 0] > threshold"
            )
        if value.shape != shape:
            hint = (
                "try flatten()" if self.batch_dims else 'the batch has one clock: try amin(), or stepping="per-sample"'
            )
            raise ValueError(
                f"{name} returned shape {tuple(value.shape)}, expected {shape}, one number "
                f"{'per sample' if self.batch_dims else 'in all'}; {hint}"
            )

    @contextmanager
    def bind(
        self, tensors: Any, audit: bool = False, keep_buffers: bool = False, rows: Tensor | None = None
    ) -> Iterator[Conditions]:
        """The conditions with these tensors in place; see `Dynamics.bind`."""
        tensors = [tensor.detach() for tensor in tensors] if audit else list(tensors)
        layout = self.layout if rows is None else self.layout.of_batch(len(rows))
        first = rows is None

        def value_at(function: Callable, t: Tensor, y: Tensor) -> Any:
            t = self.user_time(t, rows).to(self.time_dtype)
            return function(t.view(self.time_shape), layout.unflatten(y))

        def of_all(t: Tensor, y: Tensor) -> Tensor:
            nonlocal first

            def ask() -> list:
                return [value_at(condition, t, y) for condition in conditions]

            first, values = False, self.evaluate_first(ask, y) if first else ask()
            return torch.stack([value.view(-1).to(t.dtype) for value in values], dim=1)

        def of_one(function: Callable, t: Tensor, y: Tensor) -> Tensor:
            return value_at(function, t, y).view(-1).to(t.dtype)

        with self.explicit.bind(tensors, keep_buffers, audit) as bound, self.autocast.off():
            assert isinstance(bound.f, Together)
            conditions = [self.autocast.around(replace(bound, f=condition)) for condition in bound.f.conditions]
            yield Conditions(of_all, [partial(of_one, condition) for condition in conditions])

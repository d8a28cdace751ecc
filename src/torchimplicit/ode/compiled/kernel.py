"""Steps and their controller compiled into one kernel: several steps a call, one read by the host for all of them.

What a step does is written here as one pure function of tensors, which `torch.compile` fuses with the user's function.
The kernels of a function are kept, so that a second solve compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from torchimplicit.core.compiled.kernel import Fused, identity
from torchimplicit.ode.explicit.tableau import Tableau
from torchimplicit.path.field.dynamics import RawField
from torchimplicit.path.solver import AdaptiveSolver, PathSolver
from torchimplicit.path.stepsize import PID, UNCONFIRMED

CHUNK = 4  # steps a call; more of them take minutes to compile


class Chunk(NamedTuple):
    """What a few steps found, the first dimension being the steps.

    Attributes:
        stops: times after each step, `(C, B)`.
        ends: states after each step, `(C, B, n)`.
        increments: `h k_i`, `(C, s, B, n)`; None where they are not wanted.
        h: the next step size, `(B,)`.
        most: the largest one after that, `(B,)`.
        slope: the slope at the last state, `(B, n)`.
        ratio: the error of each sample's last accepted step over its tolerance, or of the one that stopped it, `(B,)`.
        tried: steps that each sample tried, `(B,)`.
        rejected: those that it rejected.
        stuck: samples that stopped for a step too small, `(B,)`.
        facts: for the host, `(4 C + 1,)` bool: for each step whether any sample tries it, whether any moves, whether
            all do, whether any comes to an output time; at the end whether any is stuck.
    """

    stops: Tensor
    ends: Tensor
    increments: Tensor | None
    h: Tensor
    most: Tensor
    slope: Tensor
    ratio: Tensor
    tried: Tensor
    rejected: Tensor
    stuck: Tensor
    facts: Tensor


@dataclass(frozen=True)
class Plan:
    """All that a kernel takes for granted; the vector field and every tensor are its inputs.

    Attributes:
        tableau: the method.
        order: its order.
        rtol: relative tolerance.
        atol: absolute tolerance.
        control: the controller, of the last error alone.
        shape: of the state but for its batch; with its batch for `joint`.
        time_shape: see `RawField`.
        joint: whether the batch is one sample.
        dense: whether increments are wanted.
        same: whether the last slope of a step is the first one of the next.
    """

    tableau: Tableau
    order: int
    rtol: float
    atol: float
    control: PID
    shape: tuple[int, ...]
    time_shape: tuple[int, ...]
    joint: bool
    dense: bool
    same: bool

    def slope(self, f: Callable, args: tuple, t: Tensor, y: Tensor) -> Tensor:
        """The slope `(B, n)` at times `(B,)` and states `(B, n)`."""
        state = y.reshape(self.shape) if self.joint else y.reshape(-1, *self.shape)
        return f(t.to(y.dtype).reshape(self.time_shape), state, *args).reshape(y.shape)

    def step(
        self, f: Callable, args: tuple, t: Tensor, stop: Tensor, y: Tensor, slope: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The state after a step, `(B, n)`, and its slopes, the last one of a method that has it at the end."""
        h = stop - t
        slopes = [self.slope(f, args, t, y) if slope is None else slope]
        size = h.to(y.dtype).unsqueeze(1)
        end = y
        for c, row in zip(self.tableau.c[1:], self.tableau.a[1:], strict=True):
            end = y + size * _sum(row, slopes)
            slopes.append(self.slope(f, args, stop if c == 1.0 else t + c * h, end))  # `t + h` may be beyond
        if not self.same:
            end = y + size * _sum(self.tableau.b, slopes)
        return end, slopes

    def ratio(self, size: Tensor, y: Tensor, end: Tensor, slopes: list[Tensor]) -> Tensor:
        """The error of a step of sizes `(B, 1)` over its tolerance, `(B,)`; infinite for NaN."""
        assert self.tableau.e is not None
        scale = self.atol + self.rtol * torch.maximum(y.abs(), end.abs())
        ratio = (size * _sum(self.tableau.e, slopes) / scale).square().mean(1).sqrt()
        return torch.where(ratio.isnan(), math.inf, ratio)

    def factor(self, ratio: Tensor) -> Tensor:
        """What to multiply the step size by, `(B,)`; see `PID.factor`."""
        control = self.control
        factor = control.safety * (ratio.log() * (-control.integral / self.order)).exp()
        return factor.clamp(control.smallest, control.largest)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight != 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _make_advance(plan: Plan) -> Callable[..., Chunk]:
    def advance(
        f: Callable, args: tuple, t: Tensor, h: Tensor, y: Tensor, slope: Tensor, end: Tensor, next_output: Tensor,
        alive: Tensor, least: Tensor, most: Tensor, largest: Tensor | None,
    ) -> Chunk:  # fmt: skip
        stops, ends, increments, facts = [], [], [], []
        tried = rejected = torch.zeros_like(t, dtype=torch.int64)
        last, stuck = torch.zeros_like(y[:, 0]), torch.zeros_like(alive)
        rounding = 4 * torch.finfo(t.dtype).eps
        for _ in range(CHUNK):
            h = h if largest is None else torch.minimum(h, largest)
            stop = torch.minimum(t + h, end)
            size = stop - t
            after, slopes = plan.step(f, args, t, stop, y, slope if plan.same else None)
            column = size.to(y.dtype).unsqueeze(1)
            ratio = plan.ratio(column, y, after, slopes)
            accept = alive & (ratio <= 1)
            reject = alive & ~accept
            wanted = torch.minimum(h, end - t) * plan.factor(ratio)
            h, most = torch.minimum(wanted, most), UNCONFIRMED * wanted
            low = reject & (h < least + rounding * t.abs())
            facts += [alive.any(), accept.any(), accept.all(), (accept & (stop >= next_output)).any()]
            tried, rejected, stuck = tried + alive, rejected + reject, stuck | low
            last = torch.where(accept | low, ratio, last)
            moved = accept.unsqueeze(1)
            t, y = torch.where(accept, stop, t), torch.where(moved, after, y)
            slope = torch.where(moved, slopes[-1], slope)
            alive = alive & ~low & (t < end)
            h = torch.where(alive, h, 0.0)
            stops.append(t)
            ends.append(y)
            if plan.dense:
                increments.append(torch.stack(slopes) * column)
        facts = torch.stack([*facts, stuck.any()])
        return Chunk(
            torch.stack(stops), torch.stack(ends), torch.stack(increments) if plan.dense else None, h, most, slope,
            last, tried, rejected, stuck, facts,
        )  # fmt: skip

    return advance


def _make_again(plan: Plan) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def again(f: Callable, args: tuple, starts: Tensor, stops: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        ends, increments, slope = [], [], None
        for t, stop in zip(starts.unbind(), stops.unbind(), strict=True):
            size = stop - t
            after, slopes = plan.step(f, args, t, stop, y, slope)
            moved = (size > 0).unsqueeze(1)
            y = torch.where(moved, after, y)
            if plan.same:
                slope = torch.where(moved, slopes[-1], slopes[0])
            ends.append(y)
            if plan.dense:
                increments.append(torch.stack(slopes) * size.to(y.dtype).unsqueeze(1))
        return torch.stack(ends), torch.stack(increments) if plan.dense else None

    return again


class Kernel:
    """The compiled functions of one plan and one vector field.

    Args:
        plan: what they take for granted.
    """

    def __init__(self, plan: Plan):
        self.plan = plan

    @cached_property
    def advance(self) -> Callable[..., Chunk]:
        """`CHUNK` steps with their controller; see `Chunk`. Takes no gradient."""
        return Fused(_make_advance(self.plan), "f")

    @cached_property
    def again(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """Recorded steps again, with their graph: states after each, `(C, B, n)`, and their increments."""
        return Fused(_make_again(self.plan), "f")


_kernels: WeakKeyDictionary[Any, dict[Hashable, Kernel]] = WeakKeyDictionary()


def find_kernel(solver: PathSolver, raw: RawField | None, joint: bool, dense: bool) -> Kernel | None:
    """The kernel for a bound vector field; None where the method or the field is not one that can be compiled so."""
    if raw is None or not can_compile(solver):
        return None
    assert isinstance(solver, AdaptiveSolver)
    assert isinstance(solver.rtol, float)
    assert isinstance(solver.atol, float)
    assert isinstance(solver.control, PID)
    tableau: Tableau = solver.tableau  # type: ignore[attr-defined]
    shape = tuple(raw.shape) if joint else tuple(raw.shape[1:])
    plan = Plan(
        tableau, solver.order, solver.rtol, solver.atol, solver.control, shape, raw.time_shape, joint, dense,
        tableau.first_same_as_last,
    )  # fmt: skip
    return _kernels.setdefault(identity(raw.f), {}).setdefault(plan, Kernel(plan))


def can_compile(solver: PathSolver) -> bool:
    """Whether a solver's steps can be compiled: explicit ones, adaptive by the last error, tolerances numbers."""
    return (
        isinstance(solver, AdaptiveSolver)
        and isinstance(getattr(solver, "tableau", None), Tableau)
        and isinstance(solver.control, PID)
        and not solver.control.remembers
        and isinstance(solver.rtol, float)
        and isinstance(solver.atol, float)
    )

"""Several steps and their noise compiled into one kernel.

A kernel is a function of the first state and of integers: seeds, words of steps, words of channels. The method's
formula is the one that plain steps have, traced; the normals are made where they are used. What changes from call to
call is a tensor, so that neither the number of a step nor its length compiles anything.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from torchimplicit.core.compiled.kernel import Fused, identity
from torchimplicit.path.span import Span
from torchimplicit.sde.bridge import Increment, scaled
from torchimplicit.sde.diffusion import Diffusion
from torchimplicit.sde.dynamics import WHOLE, NoisyField, RawEquation
from torchimplicit.sde.normals import normals_of_steps
from torchimplicit.sde.solver import SDESolver

CHUNK = 10  # steps a call, an even number, for a word is for two


@dataclass(frozen=True)
class Plan:
    """All that a kernel takes for granted; functions and tensors are its inputs.

    Attributes:
        solver: the method, whatever its `dt`.
        diffusion: how diffusions become rows, of any number of samples.
        making: makes drift and diffusion of what the user's functions return, see `StochasticDynamics.making`.
        time_shape: of times.
        count: how many steps are made.
    """

    solver: SDESolver
    diffusion: Diffusion
    making: Callable[..., NoisyField]
    time_shape: tuple[int, ...]
    count: int

    def field(self, parts: tuple, args: tuple, batch: int) -> NoisyField:
        """Drift and diffusion of the user's functions, for so many samples."""
        diffusion = self.diffusion.of_batch(batch)

        def value(t: Tensor, y: Tensor, number: int = WHOLE) -> Any:
            t, y = t.view(self.time_shape), diffusion.layout.unflatten(y)
            some = parts if number == WHOLE else parts[number : number + 1]
            found = [part(t, y, *args) for part in some]
            return tuple(found) if number == WHOLE else found[0]

        nobody: Any = None
        return self.making(value, None, diffusion, nobody)

    def noise(
        self, seeds: Tensor, channels: tuple[Tensor, ...], words: tuple[Tensor, ...], h: Tensor, dtype: torch.dtype
    ) -> list[Increment]:
        """The paths over the steps of lengths `(C,)`."""
        drawn = [normals_of_steps(seeds, each, some, dtype) for each, some in zip(words, channels, strict=True)]
        H, x = (*drawn[1:], None, None)[:2]
        return scaled(drawn[0], H, h.to(dtype).view(-1, 1, 1), x).split()


class Chunk(NamedTuple):
    """What a kernel is told of some steps.

    Attributes:
        starts: times before every step, `(C,)`; those behind the last step are before the first.
        stops: times after it.
        words: see `Keys`.
    """

    starts: Tensor
    stops: Tensor
    words: tuple[Tensor, ...]


def _make_chunk(plan: Plan, every: bool = True) -> Callable[..., tuple[Tensor, int]]:
    def chunk(
        parts: tuple, args: tuple, seeds: Tensor, channels: tuple[Tensor, ...], y: Tensor, some: Chunk
    ) -> tuple[Tensor, int]:
        sde, first, ends, end = plan.field(parts, args, len(y)), y, [], y
        paths = plan.noise(seeds, channels, some.words, some.stops - some.starts, y.dtype)
        for t, stop, path in zip(some.starts.unbind(), some.stops.unbind(), paths, strict=True):
            moves = stop > t
            span = Span.of(t.expand(len(y)), stop.expand(len(y)))
            # No step is one at the first state, where derivatives are asked for anyway.
            start = torch.where(moves, y, first)
            if (there := sde.met(end)) is not None:  # whose derivatives the last step has asked for
                sde.meet(start, there)
            end, _ = plan.solver.made(sde, span, span.h.to(y.dtype).unsqueeze(1), start, path)
            y = torch.where(moves, end, y)
            ends.append(y)
        return torch.stack(ends) if every else y.unsqueeze(0), sde.nfev

    return chunk


def _make_pull(plan: Plan) -> Callable[..., tuple[Tensor | None, ...]]:
    chunk = _make_chunk(plan)

    def pull(
        parts: tuple, args: tuple, seeds: Tensor, channels: tuple[Tensor, ...], wanted: tuple[Tensor, ...], y: Tensor,
        some: Chunk, arriving: Tensor,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ends, _ = chunk(parts, args, seeds, channels, y, some)
        return torch.autograd.grad([ends], [y, *wanted], [arriving], allow_unused=True)

    return pull


class Kernel:
    """The compiled functions of one plan and one equation.

    Each takes the user's functions, their further arguments, seeds and channels as `Keys` has them, a state `(B, n)`,
    and a `Chunk`.

    Args:
        plan: what they take for granted.
    """

    def __init__(self, plan: Plan):
        self.plan = plan

    @cached_property
    def advance(self) -> Fused:
        """Steps: states after each, `(C, B, n)`, and how many evaluations that took."""
        return Fused(_make_chunk(self.plan), "an equation")

    @cached_property
    def leap(self) -> Fused:
        """The same, but the states after the last one alone, `(1, B, n)`: to write down all takes as long as steps."""
        return Fused(_make_chunk(self.plan, every=False), "an equation")

    @cached_property
    def pull(self) -> Fused:
        """Steps made again and their gradients in one, with no graph between: of the state and of tensors `wanted`.

        Takes these before the state, and the gradients of states after each step behind the chunk.
        """
        return Fused(_make_pull(self.plan), "an equation", differentiates=True)


_kernels: WeakKeyDictionary[Any, dict[Hashable, Kernel]] = WeakKeyDictionary()


def find_kernel(solver: SDESolver, raw: RawEquation) -> Kernel:
    """The kernel of a bound equation."""
    layout, solver = raw.diffusion.layout, copy.copy(solver)
    # A method may not look at it, for the last step is shorter; one that did would give no number.
    object.__setattr__(solver, "dt", math.nan)
    object.__setattr__(solver, "max_steps", 1)
    others = tuple(map(identity, raw.users[1:]))
    key = (
        solver,
        raw.diffusion.noise,
        raw.diffusion.behind,
        layout.shapes[0][1:],
        layout.dtype,
        raw.making,
        CHUNK,
        *others,
    )
    known = _kernels.setdefault(identity(raw.users[0]), {})
    if key not in known:
        known[key] = Kernel(Plan(solver, raw.diffusion, raw.making, raw.time_shape, CHUNK))
    return known[key]

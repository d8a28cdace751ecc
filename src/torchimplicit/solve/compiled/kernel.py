"""Steps towards a fixed point compiled into one kernel: a period of Anderson's, its iterates judged, one read for all.

What a period does is written here as one pure function of tensors, which `torch.compile` fuses with the user's
function. The kernels of a function are kept, so that a second solve compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from torchimplicit.core.compiled.kernel import Fused, identity
from torchimplicit.core.problem import Problem
from torchimplicit.solve.anderson import Anderson
from torchimplicit.solve.compiled.judge import Rules, Standing, Step, judged
from torchimplicit.solve.compiled.mixing import combined
from torchimplicit.solve.loop import Solver
from torchimplicit.solve.picard import Picard
from torchimplicit.solve.polyalgorithm import Polyalgorithm

CHUNK = 3  # evaluations a call at least; more of them take longer to compile
LONGEST = 6  # period that is compiled
WIDEST = 8  # window


class Now(NamedTuple):
    """Where a solve is.

    Attributes:
        z: an iterate, `(B, n)`.
        residual: there, `(B, n)`.
        at: the number of the step, a scalar.
        standing: what is known of the samples.
    """

    z: Tensor
    residual: Tensor
    at: Tensor
    standing: Standing

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """As kernels take and give it."""
        return (self.z, self.residual, self.at, *self.standing)

    @staticmethod
    def split(flat: Sequence[Tensor]) -> tuple[Now, tuple[Tensor, ...]]:
        """What was flat, and the rest."""
        z, residual, at, *rest = flat
        count = len(Standing._fields)
        return Now(z, residual, at, Standing(*rest[:count])), tuple(rest[count:])


class Chunk(NamedTuple):
    """Where a few steps have led, flat: what kernels give.

    Attributes:
        facts: for the host, int64 `(4,)`: how many samples run; whether norms must be measured with more care; whether
            some sample has failed; whether some have stopped while others went on.
        size: the norm of the residual, `(B,)`.
        scale: that of the iterate, `(B,)`.
        now: the iterate, its residual, the number of the step and what is known of the samples: see `Now`.
        past: targets and residuals that were new on the way there, in turn, oldest first; of the first target's
            residual the caller knows, and calls are slower that give back what they were given.
    """

    facts: Tensor
    size: Tensor
    scale: Tensor
    now: Now
    past: tuple[Tensor, ...]

    @staticmethod
    def of(flat: Sequence[Tensor]) -> Chunk:
        """What was flat."""
        facts, size, scale, *rest = flat
        return Chunk(facts, size, scale, *Now.split(rest))


@dataclass(frozen=True)
class Plan:
    """All that a kernel takes for granted; the function, tolerances and every other tensor are its inputs.

    Attributes:
        window: residuals to combine; 1 for none.
        period: steps from one combination to the next.
        damping: see `Anderson`.
        ridge: see `Anderson`.
        rules: what samples are judged by.
        shape: of the state but for its batch; with its batch where that is one sample.
        joint: whether the batch is one sample.
        channels_last: whether the channels of a pixel stand side by side in a flat state.
    """

    window: int
    period: int
    damping: float
    ridge: float
    rules: Rules
    shape: tuple[int, ...]
    joint: bool
    channels_last: bool

    @staticmethod
    def of(solver: Solver, problem: Problem) -> Plan:
        """What the first steps of a solver on a problem take for granted."""
        layout, rules, method = problem.layout, Rules(solver.patience, problem.eps), first_method(solver)
        shape, joint = tuple(layout.shapes[0][problem.batch_dims :]), problem.batch_dims == 0
        if isinstance(method, Anderson) and method.window > 1:
            how = method.memory, method.period, method.damping, method.ridge
        else:
            assert isinstance(method, Anderson | Picard)
            how = 1, CHUNK, method.damping, 0.0
        return Plan(*how, rules, shape, joint, layout.channels_last[0])

    @property
    def chunk(self) -> int:
        """Steps a call: whole periods."""
        return self.period * -(-CHUNK // self.period)

    @property
    def past(self) -> int:
        """Residuals from before a period that are combined at its end."""
        return max(self.window - self.period, 0) if self.window > 1 else 0

    def residual(self, f: Callable, args: tuple, z: Tensor) -> Tensor:
        """`z - f(z)`, `(B, n)`."""
        if self.channels_last:
            channels, *rest = self.shape
            value = f(z.reshape(-1, *rest, channels).movedim(-1, 1), *args).movedim(1, -1)
        else:
            value = f(z.reshape(self.shape) if self.joint else z.reshape(-1, *self.shape), *args)
        return z - value.reshape(z.shape)


def _make_advance(plan: Plan) -> Callable[..., tuple[Tensor, ...]]:
    def advance(f: Callable, args: tuple, limit: Tensor, tolerances: Tensor, *where: Tensor) -> tuple[Tensor, ...]:
        now, past = Now.split(where)
        z, residual, number, standing = now
        pairs = list(zip(past[::2], past[1::2], strict=True))
        there = len(pairs) - torch.arange(plan.past + plan.chunk, device=z.device) <= number  # a start has no past
        minute = tolerances[1] < (torch.finfo(z.dtype).tiny / torch.finfo(z.dtype).eps) ** 0.5
        doubt = apart = torch.zeros_like(minute)
        size = scale = standing.best
        for i in range(plan.chunk):
            before = z
            z = z - plan.damping * residual
            pairs.append((residual, z))
            if plan.window > 1 and (i + 1) % plan.period == 0:
                residuals, targets = zip(*pairs[-plan.window :], strict=True)
                known = there[: len(pairs)][-plan.window :].to(z.dtype)
                z = combined(residuals, targets, known, plan.ridge)
            residual, number = plan.residual(f, args, z), number + 1
            size, scale = residual.square().sum(1).sqrt(), z.square().sum(1).sqrt()
            step = Step(number, before, z, size, scale, tolerances[1] + tolerances[0] * scale, limit)
            standing, doubtful, parts = judged(standing, step, plan.rules, minute)
            doubt, apart = doubt | doubtful, apart | parts
        facts = torch.stack([standing.running.sum(), doubt, (standing.status != 0).any(), apart])
        new = [each for pair in pairs[plan.past :] for each in pair if each is not now.residual] if plan.past else []
        return facts, size, scale, z, residual, number, *standing, *new

    return advance


_kernels: WeakKeyDictionary[Any, dict[Hashable, Fused]] = WeakKeyDictionary()


def find_kernel(f: Any, plan: Plan) -> Fused:
    """The kernel for a function, compiled at its first call."""
    known = _kernels.setdefault(identity(f), {})
    if plan not in known:
        known[plan] = Fused(_make_advance(plan), "f")
    return known[plan]


def first_method(solver: Solver) -> Solver:
    """The method of the first steps."""
    return solver.granted(solver.first) if isinstance(solver, Polyalgorithm) else solver


def can_compile(solver: Solver) -> bool:
    """Whether a solver's first steps can be compiled: those of the two methods that call no library."""
    method = first_method(solver)
    if type(method) is Anderson:
        return method.window <= WIDEST and method.period <= LONGEST and solver.check_every == 1
    return type(method) is Picard and solver.check_every == 1

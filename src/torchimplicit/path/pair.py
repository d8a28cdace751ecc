"""Methods that carry two states of a path along, so that their steps can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.record import Step
from torchimplicit.path.solver import AdaptiveSolver, PathSolver
from torchimplicit.path.span import Span
from torchimplicit.path.undo import Mend, Pair, Undo

Increments = Callable[[Field, Span, Tensor, bool], Tensor]  # of field, span, states, and whether backward along it


@dataclass(frozen=True, kw_only=True)
class PairSolver(PathSolver):
    """Base of the methods on pairs `(y, z)`, `(B, 2n)`, of states that are the same at first, `y` being the path."""

    stops_at_outputs: ClassVar[bool] = True
    has_inverse: ClassVar[bool] = True

    def undo(self, field: Field, ts: Tensor, wanted: Sequence[Tensor], mend: Mend) -> Undo:
        """Takes steps back, exactly but for rounding; arguments as those of `Undo`."""
        raise NotImplementedError

    def apart(self, field: Field, ts: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """How far the two states have parted over what is tolerated, `(B,)`; beyond `LIMIT` a path is not trusted.

        Args:
            field: bound beside the solve.
            ts: output times, `(T, B)`.
            y: the first states there, `(T, B, n)`.
            z: the second ones.
        """
        raise NotImplementedError

    def state_field(self, field: Field) -> Field:
        """See `PathSolver.state_field`: at the start, where both states are the same."""
        return Field(lambda t, pair: field(t, pair.chunk(2, dim=1)[0]).repeat(1, 2))


@dataclass(frozen=True, kw_only=True)
class Paired(PairSolver):
    r"""A method made reversible, mixed into its class; see `Reversible` for the formula.

    Args:
        coupling: $\lambda$.
    """

    coupling: float = 1.0

    def coupled(self, h: Tensor, pair: Tensor, there: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        """The pair at the end of a step.

        Args:
            h: lengths of steps, `(B, 1)`.
            pair: at its start.
            there: what the method's step adds to the second state.
            back: what its step backward adds to a state at the end.
        """
        y, z = pair.chunk(2, dim=1)
        y = torch.lerp(z, y, self.weight(h, y)) + there
        return torch.cat((y, z - back(y)), dim=1)

    def weight(self, h: Tensor, y: Tensor) -> Tensor:
        """The coupling, `(B, 1)`: what stands still stays."""
        return torch.where(h == 0, 1.0, self.coupling).to(y.dtype)

    def increments(self, like: Tensor) -> Increments:
        """What the method's steps add to states `(B, n)`, without an estimate of the error, as a graph."""
        raise NotImplementedError

    def undo(self, field: Field, ts: Tensor, wanted: Sequence[Tensor], mend: Mend) -> Undo:
        """See `PairSolver.undo`."""
        return Uncoupling(self, field, ts, wanted, mend)


class Uncoupling(Undo):
    """Takes back the steps of a pair; see `Undo`.

    Args:
        solver: of the pair.
        *args: see `Undo`.
    """

    increments: Increments | None = None

    def __init__(self, solver: Paired, field: Field, ts: Tensor, wanted: Sequence[Tensor], mend: Mend):
        super().__init__(field, ts, wanted, mend)
        self.solver = solver

    def step(self, step: Step, end: Pair, cotangent: Pair) -> tuple[Pair, Pair]:
        """See `Undo.step`."""
        (y, z), (to_y, to_z) = end, cotangent
        weight = self.solver.weight(step.span.h.unsqueeze(1), y)
        back, leaf = self._increment(step, y, backward=True)
        before_z = self.mend(_moved(step, z, z + back.detach()))
        to_y = to_y + self.pull([back], leaf, [-_moved(step, torch.zeros_like(to_z), to_z)])
        there, leaf = self._increment(step, before_z, backward=False)
        before_y = before_z + (y - before_z - there.detach()) / weight
        before_y = self.mend(_moved(step, y, before_y))
        pulled = self.pull([there], leaf, [_moved(step, torch.zeros_like(to_y), to_y)])
        to_y, to_z = weight * to_y, to_z + (1 - weight) * to_y + pulled
        return (before_y, before_z), (to_y, to_z)

    def _increment(self, step: Step, y: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
        if self.increments is None:
            self.increments = self.solver.increments(y)
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            return self.increments(self.field, self.span(step), leaf, backward), leaf


def _moved(step: Step, still: Tensor, moved: Tensor) -> Tensor:
    """What is so of the samples that a step moves, and of the others."""
    return moved if step.all_move else torch.where((step.stop > step.start).unsqueeze(1), moved, still)


def made_reversible(mixin: type[Paired], solver: PathSolver, coupling: float) -> Any:
    """A method made reversible, with the same options.

    Args:
        mixin: what its family adds to it.
        solver: the method.
        coupling: of the pair.
    """
    options = {each.name: getattr(solver, each.name) for each in fields(solver)}
    return _class_of(mixin, type(solver))(**options, coupling=coupling)


@lru_cache
def _class_of(mixin: type[Paired], method: type[PathSolver]) -> Any:
    made = type(f"Paired{method.__name__}", (mixin, method), {})
    return dataclass(frozen=True, kw_only=True)(made)


def for_pairs(solver: PathSolver, like: Tensor) -> PathSolver:
    """A solver whose tolerances are for states `(B, n)`, for pairs of such, `(B, 2n)`."""
    if not isinstance(solver, AdaptiveSolver):
        return solver
    tensors = {name: getattr(solver, name) for name in ("rtol", "atol")}
    doubled = {
        name: tensor.to(like.dtype).expand(like.shape).repeat(1, 2)
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }
    return replace(solver, **doubled) if doubled else solver

"""A vector field `f(t, y, *args)` in the flat form that path solvers work on: rows of state, a time per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.explicit import Bound
from torchimplicit.core.problem import Problem
from torchimplicit.core.tree import Layout
from torchimplicit.path.field.split import Split
from torchimplicit.path.report import PathReport


class RawField(NamedTuple):
    """The user's function as it is, for loops that would rather shape once a step than once an evaluation.

    Attributes:
        bound: `(t, y) -> dy/dt`, its state and slope of `shape`.
        shape: of the state, a tensor of the solver's dtype.
        time_shape: of the times, which have the solver's dtype too.
        f: the function as the user gave it, which stays the same from solve to solve.
    """

    bound: Bound
    shape: torch.Size
    time_shape: tuple[int, ...]
    f: Callable


class Field:
    """A bound vector field: `dy/dt`, `(B, n)`, at times `(B,)` and states `(B, n)`; counts its evaluations.

    Args:
        evaluate: `(t, y) -> dy/dt`.
    """

    def __init__(self, evaluate: Callable[[Tensor, Tensor], Tensor]):
        self.evaluate = evaluate
        self.raw: RawField | None = None
        self.parts: tuple[Callable[[Tensor, Tensor], Tensor], ...] = ()  # of a `Split`: explicit, implicit
        self.nfev = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at `(t, y)`."""
        self.nfev += 1
        return self.evaluate(t, y)

    def seen(self, t: Tensor, y: Tensor) -> Tensor | None:
        """The slope at `(t, y)`, where that was what was asked for first, and is kept."""
        return None

    def divide(self, parts: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        """Makes the parts of a `Split` known, `(t, y) -> dy/dt` each; they are counted, too."""

        def counted(part: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> Tensor:
            self.nfev += 1
            return part(t, y)

        self.parts = tuple(partial(counted, part) for part in parts)


class Dynamics(Problem):
    """`dy/dt = f(t, y, *args)`, its tensors explicit, its state flat.

    Time runs forward for the solvers: where a path is asked for backward in time, they see `-t` and `-f`.

    Args:
        f: the user's function; sees a time per sample, shaped `(B, 1, ...)` such that it broadcasts against the first
            leaf of the state, or a single number where the state has no batch dimension.
        y0: the initial state, nested.
        args: further arguments of `f`.
        batch_dims: see `Problem`.
        batched_args: see `Problem`.
        backward: which samples run backward in time, `(B,)` bool; None where none does.
        layout: see `Problem`.
    """

    form: ClassVar[str] = "f(t, y, *args)"
    joint: ClassVar[str] = 'stepping="joint"'  # the option that makes a batch one coupled problem

    def __init__(
        self,
        f: Callable,
        y0: Any,
        args: tuple,
        batch_dims: int = 1,
        batched_args: Sequence[int] | None = None,
        backward: Tensor | None = None,
        layout: Layout | None = None,
    ):
        """Makes function and state explicit; evaluates nothing."""
        super().__init__(f, y0, args, batch_dims, batched_args, layout=layout)
        first = self.layout.dtypes[0]
        self.time_dtype = first.to_real() if first.is_complex else first
        self.time_shape = (-1, *(1,) * (len(self.layout.shapes[0]) - 1)) if batch_dims else ()
        self.sign = None
        if backward is not None:  # as a plain tensor: transforms around the solve do not reach into it
            self.sign = transforms.unwrapped(torch.where(backward, -1.0, 1.0).to(self.layout.dtype))
        self.batched = self._find_batched(args)

    def _find_batched(self, args: tuple) -> list[bool]:
        """Which of the explicit tensors carry the batch in dimension 0, as `batched_args` say."""
        flags = [False] * self.explicit.shared
        for i, arg in enumerate(args):
            count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(arg))
            flags += [i in (self.batched_args or ())] * count
        return flags

    @property
    def width(self) -> int:
        """Unknowns of a sample."""
        return self.layout.width

    @property
    def can_narrow(self) -> bool:
        """Whether it is known which arguments belong to which sample."""
        return self.batched_args is not None

    @property
    def is_split(self) -> bool:
        """Whether the field has two parts."""
        return isinstance(self.f, Split)

    def take(self, tensors: Sequence[Tensor], rows: Tensor | None) -> list[Tensor]:
        """The explicit tensors for some samples alone; all of them for None."""
        if rows is None:
            return list(tensors)
        return [tensor[rows] if batched else tensor for tensor, batched in zip(tensors, self.batched, strict=True)]

    def user_time(self, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """Times as the user counts them from times as solvers do, or the other way round, `(..., B)`."""
        if self.sign is None:
            return t
        return t * (self.sign if rows is None else self.sign[rows]).to(t.dtype)

    def of_rows(self, rows: Tensor) -> Self:
        """The same with other samples of it in the places of its samples."""
        other = copy(self)
        other.sign = None if self.sign is None else self.sign[rows]
        return other

    def mapped(self, count: int, dims: tuple[int | None, ...]) -> MappedDynamics:
        """The same under `torch.vmap`; see `MappedDynamics`."""
        return MappedDynamics(self, count, dims)

    def report(self, *args: Any, **kwargs: Any) -> PathReport:
        """How a solve went, from the fields of a `PathReport`."""
        return PathReport(*args, **kwargs)

    @contextmanager
    def bind(
        self,
        tensors: list[Tensor] | tuple[Tensor, ...],
        audit: bool = False,
        keep_buffers: bool = False,
        rows: Tensor | None = None,
        leaves: bool = False,
    ) -> Iterator[Field]:
        """The vector field with these tensors in place.

        Args:
            tensors: in the order of `Explicit.take_tensors`; for `rows`, as `take` gives them.
            audit: refuse captured tensors, see `Problem.bind`.
            keep_buffers: see `Explicit.bind`.
            rows: the samples that the field is for, `(M,)`; None for all.
            leaves: whether the tensors are leaves that evaluations may have a graph of; else an audit detaches them.
        """
        tensors = [tensor.detach() for tensor in tensors] if audit and not leaves else list(tensors)
        looks = rows is None and (audit or keep_buffers)  # a path made again has been looked at
        layout = self.layout if rows is None else self.layout.of_batch(len(rows))
        sign = None if self.sign is None else (self.sign if rows is None else self.sign[rows]).unsqueeze(1)

        def value_at(t: Tensor, y: Tensor, part: Callable | None = None) -> Any:
            t = t if sign is None else t * sign.squeeze(1)
            t = t if t.dtype is self.time_dtype else t.to(self.time_dtype)
            return (part or function)(t.view(self.time_shape), layout.unflatten(y))

        def evaluate(t: Tensor, y: Tensor, part: Callable | None = None) -> Tensor:
            slope = layout.flatten(value_at(t, y, part))
            return slope if sign is None else slope * sign

        def evaluate_once(t: Tensor, y: Tensor) -> Tensor:
            field.evaluate, field.raw = evaluate, raw
            value = self.evaluate_first(lambda: value_at(t, y), y)
            slope = layout.flatten(value)
            return slope if sign is None else slope * sign

        with self.explicit.bind(tensors, keep_buffers, audit) as bound, self.autocast.off():
            function, raw = self.autocast.around(bound), None
            if layout.plain and layout.channels_last == [False] and sign is None and not self.autocast.enabled:
                raw = RawField(bound, layout.shapes[0], self.time_shape, self.f)
            field = Field(evaluate_once if looks else evaluate)
            field.raw = None if looks else raw
            if isinstance(bound.f, Split):
                halves = (replace(bound, f=part) for part in (bound.f.explicit, bound.f.implicit))
                parts = [self.autocast.around(part) for part in halves]
                field.divide([partial(evaluate, part=part) for part in parts])
            yield field


class MappedDynamics:
    """Dynamics under `torch.vmap`: the mapped dimension, of size `count`, folded into the batch.

    Args:
        dynamics: of one mapped element.
        count: size of the mapped dimension.
        dims: where each explicit tensor is mapped, None where it is not.
    """

    can_narrow = False
    batched: Sequence[bool] = ()

    def __init__(self, dynamics: Dynamics | MappedDynamics, count: int, dims: tuple[int | None, ...]):
        """Wraps dynamics; may itself be wrapped."""
        self.dynamics, self.count, self.dims = dynamics, count, dims
        self.scalars: int = dynamics.scalars
        self.time_dtype: torch.dtype = dynamics.time_dtype
        self.width: int = dynamics.width
        self.eps: float = dynamics.eps
        self.joint: str = dynamics.joint

    @property
    def is_split(self) -> bool:
        """Whether the field has two parts."""
        return self.dynamics.is_split

    def mapped(self, count: int, dims: tuple[int | None, ...]) -> MappedDynamics:
        """See `Dynamics.mapped`."""
        return type(self)(self, count, dims)

    def report(self, *args: Any, **kwargs: Any) -> PathReport:
        """See `Dynamics.report`."""
        return self.dynamics.report(*args, **kwargs)

    def take(self, tensors: Sequence[Tensor], rows: Tensor | None) -> list[Tensor]:
        """See `Dynamics.take`; only all samples."""
        return list(tensors)

    def user_time(self, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `Dynamics.user_time`."""
        return self.dynamics.user_time(t.unflatten(-1, (self.count, -1)), rows).flatten(-2)

    @contextmanager
    def bind(
        self,
        tensors: list[Tensor] | tuple[Tensor, ...],
        audit: bool = False,
        keep_buffers: bool = False,
        rows: Tensor | None = None,
        leaves: bool = False,
    ) -> Iterator[Field]:
        """The vector field on `(count * B, n)`; see `Dynamics.bind`."""

        def one(t: Tensor, y: Tensor, *tensors: Tensor, part: int | None = None) -> Tensor:
            with self.dynamics.bind(tensors) as field:
                return field(t, y) if part is None else field.parts[part](t, y)

        def evaluate(t: Tensor, y: Tensor, part: int | None = None) -> Tensor:
            mapped = torch.vmap(partial(one, part=part), in_dims=(0, 0, *self.dims), randomness="different")
            return mapped(t.unflatten(0, (self.count, -1)), y.unflatten(0, (self.count, -1)), *tensors).flatten(0, 1)

        field = Field(evaluate)
        if self.is_split:
            field.divide([partial(evaluate, part=part) for part in (0, 1)])
        yield field

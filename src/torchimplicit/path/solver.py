"""Path solvers as data: which method, to which accuracy, in how many steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from torchimplicit.core.migration import Explained
from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.tree import Layout
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.graphs import Graphs
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped
from torchimplicit.path.stepsize import PID, Fixed, require_dt

Stepper = Callable[[Field, Span, Tensor, Tensor | None], Stepped]  # of (field, span, y, slope)


@dataclass(frozen=True, kw_only=True)
class PathSolver(Explained):
    """Base of the path solvers.

    A subclass says how a step is made (`stepper`), of which `order` it is, and whether it estimates its error
    (`AdaptiveSolver`, the estimate being of one order less) or not (`FixedSolver`).

    Args:
        max_steps: limit of steps, rejected ones included; beyond it the solve ends with a status.

    Attributes:
        order: of the method.
        stops_at_outputs: whether its steps end at every output time, because it knows no path inside them.
        knows_inside: whether dense output may ask inside of them all the same.
        has_inverse: whether it can take steps back; see `PairSolver`.
        remembers: whether a step depends, within its tolerance, on what earlier ones left (the Jacobian).
        alone: whether a sample's step is the same to the bit in a batch of any size, wherever the field is.
    """

    order: ClassVar[int]
    stops_at_outputs: ClassVar[bool] = False
    knows_inside: ClassVar[bool] = False
    has_inverse: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    alone: ClassVar[bool] = False

    max_steps: int = 10_000

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "max_steps")

    @property
    def adapts(self) -> bool:
        """Whether it chooses its steps by their error."""
        return False

    @property
    def keeps(self) -> bool:
        """Whether the graphs of its steps can be kept."""
        return False

    @property
    def dt_given(self) -> float | None:
        """Size of its steps where it does not choose them; None takes one step from each output time to the next."""
        return None

    def check(self, layout: Layout) -> None:
        """Refuses states that the method cannot take, with a `ValueError`; most take any."""

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """A function that makes a step: of the field, the `Span`, the states `(B, n)` and the slopes there, or None.

        Args:
            like: states like those that it will be asked for.
            graph: whether steps, known to be good, are recorded for a gradient. Else it may write over what the step
                before has found within, and must estimate the error where the method does.
        """
        raise NotImplementedError

    def keeper(self, like: Tensor, graphs: Graphs) -> Stepper:
        """What makes the steps of `stepper`, to the bit, and keeps their graphs, of a method that `keeps` them.

        Args:
            like: see `stepper`.
            graphs: what is kept.
        """
        raise NotImplementedError

    def take(self, rows: Tensor | None) -> PathSolver:
        """The solver for some samples alone, `(M,)`, whose tolerances may be their own; None for all."""
        return self

    def mapped(self, count: int) -> PathSolver:
        """The solver for a batch so many times as large, as `torch.vmap` makes it."""
        return self

    def state_field(self, field: Field) -> Field:
        """The field of the states that it works on, where those hold more than the user's; for the first step size."""
        return field

    def paired(self, name: str, like: Tensor, coupling: float) -> PathSolver:
        """The method made reversible, with the same options, on pairs of states; see `Reversible`.

        Args:
            name: of what the user called, for the message.
            like: a state, `(B, n)`.
            coupling: of the pair.

        Raises:
            ValueError: it cannot be.
        """
        raise ValueError(
            f"{name}(solver={type(self).__name__}(...), adjoint=Reversible()): expected a method "
            "that an explicit `Tableau` alone describes, such as Tsit5 or RK4; for others try adjoint=Checkpointed()"
        )


@dataclass(frozen=True, kw_only=True)
class FixedSolver(PathSolver):
    """Base of the solvers with steps of one size: cheap and repeatable, and blind to their own error.

    Args:
        dt: size of the steps, the last one being shorter where it does not fit; None takes one step from each output
            time to the next.
        max_steps: see `PathSolver`.
    """

    dt: float | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_dt(self)

    @property
    def dt_given(self) -> float | None:
        """See `PathSolver.dt_given`."""
        return self.dt


@dataclass(frozen=True, kw_only=True)
class AdaptiveSolver(PathSolver):
    """Base of the solvers that choose their steps: the error of each shall be at most `atol + rtol * max(|y|, |y'|)`.

    The error is the root of the mean square over a sample's unknowns. It is the error of one step, not of the path.

    Args:
        rtol: relative tolerance, a number > 0 or a tensor that broadcasts against the flat state `(B, n)`.
        atol: absolute tolerance, a number >= 0 or such a tensor.
        dt0: first step; None finds one.
        dt_min: a step that would have to be smaller ends the solve of its sample with a status. It is never taken.
        control: how the next step follows from the last errors; `Fixed(dt)` makes steps of one size, whatever theirs.
        max_steps: see `PathSolver`.
    """

    rtol: float | Tensor = 1e-5
    atol: float | Tensor = 1e-7
    dt0: float | None = None
    dt_min: float = 0.0
    control: PID | Fixed = PID()

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require(self, "rtol", _within(self.rtol, strict=True), "a finite number > 0, or a tensor of such")
        require(self, "atol", _within(self.atol, strict=False), "a finite number >= 0, or a tensor of such")
        require_dt(self, "dt0")
        require(self, "dt_min", is_number(self.dt_min) and 0 <= self.dt_min < math.inf, "a finite number >= 0")
        require(self, "control", isinstance(self.control, PID | Fixed), "a PID(), or Fixed(dt)")

    @property
    def adapts(self) -> bool:
        """See `PathSolver.adapts`."""
        return isinstance(self.control, PID)

    @property
    def dt_given(self) -> float | None:
        """See `PathSolver.dt_given`."""
        return self.control.dt if isinstance(self.control, Fixed) else None

    def take(self, rows: Tensor | None) -> PathSolver:
        """See `PathSolver.take`."""
        own = {name: getattr(self, name) for name in ("rtol", "atol")}
        own = {name: value[rows] for name, value in own.items() if isinstance(value, Tensor) and len(value) > 1}
        return replace(self, **own) if own and rows is not None else self

    def mapped(self, count: int) -> PathSolver:
        """See `PathSolver.mapped`."""
        own = {name: getattr(self, name) for name in ("rtol", "atol")}
        own = {
            name: value.repeat(count, 1) for name, value in own.items() if isinstance(value, Tensor) and len(value) > 1
        }
        return replace(self, **own) if own else self


def _within(value: Any, strict: bool) -> bool:
    if isinstance(value, Tensor):
        return bool((value > 0).all() if strict else (value >= 0).all()) and bool(value.isfinite().all())
    return is_number(value) and (value > 0 if strict else value >= 0) and value < math.inf

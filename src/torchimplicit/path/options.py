"""The options of a public function of paths, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import check_on_failure, require_instance
from torchimplicit.core.status import OnFailure
from torchimplicit.core.tree import Layout
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.dense.result import check_recorded
from torchimplicit.path.events.event import Event
from torchimplicit.path.solver import AdaptiveSolver, PathSolver
from torchimplicit.path.stepsize import tightest

Stepping = Literal["per-sample", "joint"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to solve for a path, and what to tell of it; see `odeint`.

    Args:
        name: of the public function, for its report and for messages.

    Raises:
        TypeError: `solver`, `adjoint`, `event` or `callback` is something else, a class in place of an instance say.
        ValueError: another word, or a solver and an adjoint, events or dense output that do not go together.
    """

    name: str
    solver: PathSolver
    adjoint: PathAdjoint
    stepping: Stepping = "per-sample"
    batched_args: Sequence[int] | None = None
    on_failure: OnFailure = "raise"
    event: Event | Sequence[Event] | None = None
    dense: bool = False
    callback: Callable | None = None
    dt_max: float | Tensor | None = None
    jumps: Tensor | None = None
    doses: Any = None

    def __post_init__(self) -> None:
        """Refuses what is no solver, no adjoint, no event and none of the words."""
        require_instance("solver", self.solver, PathSolver, "Tsit5()")
        require_instance("adjoint", self.adjoint, PathAdjoint, "Checkpointed()")
        if isinstance(self.event, list | tuple) and self.event:
            for i, one in enumerate(self.event):
                require_instance(f"event[{i}]", one, Event, "Event(condition)")
        elif self.event is not None:
            require_instance("event", self.event, Event, "Event(condition), or a list of them")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback: got {self.callback!r}, expected a callable callback(t, y, moved)")
        self.adjoint.check(self.name, self.solver)
        if self.needs_record:
            check_recorded(self.name, self.solver, self.adjoint)
        if self.stepping not in get_args(Stepping):
            raise ValueError(f"stepping: got {self.stepping!r}, expected 'per-sample' or 'joint'")
        check_on_failure(self.on_failure)

    @property
    def batch_dims(self) -> int:
        """How many dimensions of the state count samples with steps of their own."""
        return 1 if self.stepping == "per-sample" else 0

    @property
    def events(self) -> Sequence[Event] | None:
        """The events in a row; None for none."""
        return (self.event,) if isinstance(self.event, Event) else self.event

    @property
    def needs_record(self) -> bool:
        """Whether more is wanted of the path than its outputs."""
        return self.event is not None or self.dense

    @property
    def plain(self) -> bool:
        """Whether nothing is wanted but outputs of a path without jumps."""
        return not self.needs_record and self.callback is None and self.jumps is None

    def checkpoints(self, differentiable: bool) -> int:
        """How many states the solve shall keep."""
        if self.dense and (self.solver.remembers or not differentiable):
            return self.solver.max_steps
        return self.adjoint.checkpoints if differentiable else 2 * (self.event is not None)


def check_reachable(solver: PathSolver, layout: Layout, y0: Any) -> None:
    """Refuses tolerances below the rounding of the state's dtype, at which `f` sees it.

    Raises:
        ValueError: they are, where the solve starts.
    """
    if not isinstance(solver, AdaptiveSolver) or not solver.adapts or tightest(solver.rtol) >= layout.eps:
        return
    size = 1.0 if transforms.active() or not layout.batch else float(layout.flatten(y0).detach().abs().max())
    if tightest(solver.atol) < layout.eps * size:
        coarsest = max(layout.dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        name = type(solver).__name__
        raise ValueError(
            f"{name}(rtol={solver.rtol}, atol={solver.atol}): got tolerances below the rounding of the state, "
            f"{coarsest}, which is {layout.eps:.1e} of its size; try {name}(rtol={max(1e-5, 2 * layout.eps):.1g}), or "
            "y0 of a finer dtype, y0.double() or y0.float()"
        )


def flat_tolerances(solver: PathSolver, layout: Layout) -> PathSolver:
    """The solver with tolerances for the flat state."""
    if not isinstance(solver, AdaptiveSolver):
        return solver
    changed = {}
    for name in ("rtol", "atol"):
        value = getattr(solver, name)
        if isinstance(value, Tensor):
            value = layout.flatten(value.to(layout.dtype).expand(layout.shapes[0])) if layout.plain else value
            changed[name] = transforms.unwrapped(value)  # transforms around the solve do not reach into it
    return replace(solver, **changed) if changed else solver

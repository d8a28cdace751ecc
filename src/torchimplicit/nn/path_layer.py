"""What layers that walk along a field have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from torchimplicit.core.status import OnFailure
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.ode import PathAdjoint, PathReport, PathSolver, odeint

Steps = Literal["per-sample", "joint"]


class PathLayer(ImplicitLayer):
    """Base of the layers that walk: a subclass sets the adjoint and `on_failure`, and calls `walk`.

    Attributes:
        report: how the last path was walked; None before the first.
        penalties: the integrals of the last path, `(B,)` each, with their graphs.
    """

    adjoint: PathAdjoint
    on_failure: OnFailure
    report: PathReport | None
    penalties: tuple[Tensor, ...]

    def __init__(self):
        """Has walked nowhere yet."""
        super().__init__()
        self.penalties = ()

    def walk(
        self,
        field: Callable,
        state: Any,
        ts: Tensor,
        args: tuple,
        solver: PathSolver,
        batched_args: Sequence[int] | None,
        steps: Steps = "per-sample",
    ) -> Any:
        """The states at all times, `(T, B, ...)`; keeps the report, of a walk that failed, too. See `odeint`."""
        options: dict[str, Any] = {
            "solver": solver,
            "adjoint": self.adjoint,
            "steps": steps,
            "batched_args": batched_args,
        }
        return self.solve(odeint, field, state, ts, *args, **options).value

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the graphs of the last integrals, which can be neither."""
        return {**self.__dict__, "penalties": tuple(integral.detach() for integral in self.penalties)}

"""A method that can be undone exactly, step by step, made from any explicit one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.options import is_number, require
from torchimplicit.core.status import Status
from torchimplicit.ode.adjoint.augmented import for_pairs
from torchimplicit.ode.explicit.step import explicit_step, stages_of
from torchimplicit.ode.explicit.tableau import Tableau
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.checkpointed import CheckpointedSolve
from torchimplicit.path.adjoint.drift import LIMIT, looser
from torchimplicit.path.call import PathCall
from torchimplicit.path.field.dynamics import Field
from torchimplicit.path.interpolant import EndOnly
from torchimplicit.path.solver import PathSolver, Stepper, Undoer
from torchimplicit.path.span import Span
from torchimplicit.path.step import Stepped


@dataclass(frozen=True)
class Reversible(PathAdjoint):
    r"""Integrates by a method that has an inverse: exact gradients of the steps taken, and no state kept on the way.

    Two states $y$ and $z$ are carried along, both the start at first, and
    $y_{k+1} = \lambda y_k + (1 - \lambda) z_k + \Psi_h(t_k, z_k)$, $z_{k+1} = z_k - \Psi_{-h}(t_{k+1}, y_{k+1})$, where
    $\Psi_h$ is what the solver's step adds to a state. Backward undoes each step by solving these for $y_k$ and $z_k$.
    The method is of the solver's order; its steps end at the output times. It changes the value, by as much as the
    error of the steps, which no other adjoint does. Kept are two numbers a sample and step, the times.

    Twice the evaluations forward, and four times backward, so slower than `Checkpointed()` and for states too large to
    keep some of them. Rounding grows on the way back, by $\lambda^{-1}$ a step and with fields that contract: where
    that adds up, a sample is `DRIFTED` (`solution.backward` has the `drift`). On damped fields the pair itself is
    unstable, the sooner the closer the coupling is to 1: a sample whose two states part by more than ten tolerances is
    `DRIFTED`, forward. So not for stiff or strongly damped fields.

    Source: S. McCallum, J. Foster, Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv
    2410.11648, section 3.

    Args:
        coupling: $\lambda$, in (0, 1]; a smaller one pulls the two states together, and is less exact backward.
    """

    checkpoints: ClassVar[int] = 1

    coupling: float = 0.999

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "coupling", is_number(self.coupling) and 0 < self.coupling <= 1, "a number in (0, 1]")

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.solve`."""
        pair, paired = torch.cat((y0, y0), dim=1), self._paired(call, y0)
        values = CheckpointedSolve.apply(paired, pair, ts, *tensors)[0]
        return _first(call, values)

    def forward(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.forward`: by the same method."""
        return _first(call, self._paired(call, y0).forward(torch.cat((y0, y0), dim=1), ts, tensors))

    def _paired(self, call: PathCall, y0: Tensor) -> PathCall:
        return replace(call, solver=made_reversible(call.name, for_pairs(call.solver, y0), self.coupling))


def _first(call: PathCall, values: Tensor) -> Tensor:
    """The first states of pairs `(T, B, 2n)`; a sample whose states have parted has drifted.

    The estimate of a step's error does not see that: where the pair is unstable, both states are wrong, and apart.
    """
    y, z = values.chunk(2, dim=2)
    report = call.record.report
    if not transforms.active():
        rtol, atol = looser(call.solver, call.solver, y[0])
        one, other = y.detach(), z.detach()
        size = torch.maximum(one.abs(), other.abs()).amax(0)  # of every unknown, which may be zero at an output
        apart = ((one - other) / (atol + rtol * size)).square().mean(2).sqrt()
        parted = (report.status == Status.CONVERGED) & ~(apart.amax(0) <= LIMIT)
        report.status = Status.DRIFTED.where(parted, report.status)
    return y.contiguous()


class Paired(PathSolver):
    """An explicit method made reversible, on pairs `(y, z)`, `(B, 2n)`; mixed into the method's own class."""

    stops_at_outputs: ClassVar[bool] = True
    has_inverse: ClassVar[bool] = True
    tableau: ClassVar[Tableau]
    coupling: float

    def stepper(self, like: Tensor, graph: bool) -> Stepper:
        """See `PathSolver.stepper`."""
        plain = _increments(without_last(self.tableau), like, graph)
        first = plain if graph else _increments(self.tableau, like, graph)  # which estimates the error

        def step(field: Field, span: Span, pair: Tensor, _: Tensor | None) -> Stepped:
            y, z = pair.chunk(2, dim=1)
            there, error = first(field, span, z)
            weight = torch.where(span.h == 0, 1.0, self.coupling).to(y.dtype).unsqueeze(1)  # what stands still stays
            y = torch.lerp(z, y, weight) + there
            z = z - plain(field, span.back(), y)[0]
            end = torch.cat((y, z), dim=1)
            return Stepped(end, None if error is None else torch.cat((error, error), dim=1), None, EndOnly(end))

        return step

    def undoer(self, like: Tensor) -> Undoer:
        """See `PathSolver.undoer`."""
        plain = _increments(without_last(self.tableau), like, graph=False)

        def undo(field: Field, span: Span, pair: Tensor) -> Tensor:
            y, z = pair.chunk(2, dim=1)
            z = z + plain(field, span.back(), y)[0]
            y = z + (y - z - plain(field, span, z)[0]) / self.coupling
            return torch.cat((y, z), dim=1)

        return undo

    def state_field(self, field: Field) -> Field:
        """See `PathSolver.state_field`: at the start, where both states are the same."""
        return Field(lambda t, pair: field(t, pair.chunk(2, dim=1)[0]).repeat(1, 2))


def made_reversible(name: str, solver: PathSolver, coupling: float) -> Any:
    """An explicit solver made reversible, with the same options.

    Args:
        name: of what the user called, for the message.
        solver: the solver.
        coupling: of the pair; see `Reversible`.

    Raises:
        ValueError: it is none that a `Tableau` alone describes.
    """
    if type(getattr(solver, "tableau", None)) is not Tableau:  # those of implicit methods are a subclass
        raise ValueError(
            f"{name}(solver={type(solver).__name__}(...), adjoint=Reversible()): expected a method "
            "that an explicit `Tableau` alone describes, such as Tsit5 or RK4; for others try adjoint=Checkpointed()"
        )
    made = _class_of(type(solver))(**{each.name: getattr(solver, each.name) for each in fields(solver)})
    object.__setattr__(made, "coupling", coupling)
    return made


@lru_cache
def _class_of(method: type[PathSolver]) -> type[PathSolver]:
    return type(f"Paired{method.__name__}", (Paired, method), {})


@lru_cache
def without_last(tableau: Tableau) -> Tableau:
    """The same method without an error estimate, and without a last stage that only the next step has a use for."""
    stages = tableau.stages - tableau.first_same_as_last
    return Tableau(tableau.c[:stages], tableau.a[:stages], tableau.b[:stages])


def _increments(tableau: Tableau, like: Tensor, graph: bool) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What a step adds to states `(B, n)`, and the estimate of its error; `like` is a pair."""
    stages = stages_of(tableau, like.chunk(2, dim=1)[0], graph)

    def increment(field: Field, span: Span, y: Tensor) -> tuple[Tensor, Tensor | None]:
        done = explicit_step(tableau, field, span, y, None, stages())
        return done.y - y, done.error

    return increment

"""Two methods, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core.options import require, require_count
from torchimplicit.core.problem import Residual
from torchimplicit.solve.anderson import Anderson
from torchimplicit.solve.broyden import Broyden
from torchimplicit.solve.loop import Solver, taken


class Turn:
    """Whose turn it is: a method, its state, and how many steps have been made.

    One object to whoever narrows a batch, because the two methods' states are of different structures.
    """

    def __init__(self, method: Solver, state: Any, count: int):
        self.method, self.state, self.count = method, state, count

    def take(self, rows: Tensor) -> Turn:
        """The same for some of the samples."""
        state = pytree.tree_map(lambda part: taken(part, rows), self.state)
        return Turn(self.method, state, self.count)


class PolyalgorithmState(NamedTuple):
    """Iterate and residual `(B, n)`, and the rest of the running method's state."""

    z: Tensor
    residual: Tensor
    turn: Turn


@dataclass(frozen=True, kw_only=True)
class Polyalgorithm(Solver):
    """A light method for what it solves in `after` steps, and a strong one for what is left: a polyalgorithm.

    The second goes on where the first has come to. Samples that arrive before cost what the first method costs; the
    memory of the second is paid for those that are left alone, once they are less than half of a large batch. The
    default of `nn.DEQ`: cells contract at first, and come to the edge of it while they train, where the past few
    residuals of `Anderson` are too few and the many pairs of `Broyden` are not.

    Args:
        first: the method of the first steps.
        then: the method of the others; its start costs one evaluation.
        after: steps of the first method, >= 0.
        rtol: see `Solver`; those of the two methods must be left alone, and so must their limits.
        atol: see `Solver`.
        max_steps: see `Solver`; of both together.
    """

    patience: ClassVar[int] = 100  # the first one's samples may wait for the second

    first: Solver = Anderson()
    then: Solver = Broyden(memory=50)
    after: int = 60
    max_steps: int = 200

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "after", least=0)
        for name in ("first", "then"):
            part = getattr(self, name)
            if not isinstance(part, Solver):
                raise TypeError(
                    f"Polyalgorithm({name}=...): got a {type(part).__name__}, expected a solver such as Broyden()"
                )
            own = {field.name: field.default for field in fields(type(part))}
            for option in (field.name for field in fields(Solver)):
                require(
                    part,
                    option,
                    getattr(part, option) == own[option],
                    f"that of both; try Polyalgorithm({option}=...)",
                )

    def init(self, problem: Residual, z: Tensor) -> PolyalgorithmState:
        """The first method's state at the start."""
        return self._handed(self.first, problem, z, 0)

    def step(self, problem: Residual, state: PolyalgorithmState) -> PolyalgorithmState:
        """One step of whoever's turn it is."""
        turn = state.turn
        if turn.count == self.after:
            state = self._handed(self.then, problem, state.z, turn.count)
            turn = state.turn
        inner = turn.state
        if inner.z is not state.z:  # held where some samples have stopped, or taken out of a batch
            inner = inner._replace(z=state.z, residual=state.residual)
        inner = turn.method.step(problem, inner)
        return PolyalgorithmState(inner.z, inner.residual, Turn(turn.method, inner, turn.count + 1))

    def granted(self, method: Solver) -> Solver:
        """A method that is granted what both are together."""
        return replace(method, **{field.name: getattr(self, field.name) for field in fields(Solver)})

    def _handed(self, method: Solver, problem: Residual, z: Tensor, count: int) -> PolyalgorithmState:
        """A method's start."""
        method = self.granted(method)
        state = method.init(problem, z)
        return PolyalgorithmState(state.z, state.residual, Turn(method, state, count))

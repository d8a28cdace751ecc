"""What every adjoint of a path is asked for."""

from __future__ import annotations

from torch import Tensor

from torchimplicit.core.migration import Explained
from torchimplicit.path.call import PathCall
from torchimplicit.path.solver import PathSolver


class PathAdjoint(Explained):
    """Base of the adjoints of paths: how outputs get their gradient. But for `Reversible` not a bit of a value changes.

    Attributes:
        checkpoints: how many states the solve shall keep; 0 for none, and no record of it.
    """

    checkpoints: int = 0

    def check(self, name: str, solver: PathSolver) -> None:
        """Refuses solvers that the adjoint cannot differentiate, with a `ValueError`; most take any.

        Args:
            name: of what the user called, for the message.
            solver: of the forward solve.
        """

    def prepared(self, call: PathCall, y0: Tensor) -> PathCall:
        """The call as this adjoint wants it made; most want nothing.

        Args:
            call: the call.
            y0: start, `(B, n)`.
        """
        return call

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """Solves and attaches the gradient.

        Args:
            call: the call.
            y0: start, `(B, n)`, with its graph.
            ts: output times, `(T, B)`, increasing, with their graph.
            tensors: the explicit tensors, with their graphs.

        Returns:
            The outputs `(T, B, n)`, differentiable by `y0`, `ts` and `tensors`.
        """
        raise NotImplementedError

    def forward(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """The same outputs without a gradient."""
        return call.forward(y0, ts, tensors)

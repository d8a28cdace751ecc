"""A layer whose output solves a quadratic program with learned objective and constraints."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchimplicit.core.options import check_on_failure, is_count, is_number, require, require_count
from torchimplicit.core.status import OnFailure, Report
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.optim import Clarabel, InteriorPoint, QPSolution, qp


class QP(ImplicitLayer):
    r"""The OptNet layer: $z = \arg\min \tfrac12 z^\top Q z + q^\top z$ subject to $G z \le h$, $A z = b$, bounds.

    The input is $q$; everything else is learned or given (B. Amos, J. Z. Kolter, arXiv:1703.00443). The learned program
    is feasible by construction: $h = G z_0 + e^{s}$ and $b = A z_0$ for learned $z_0$ and $s$; $Q = L L^\top + \epsilon
    I$. `lower` and `upper` bound `z` itself; $z_0$ is kept between them.

    Not for programs whose matrices come from another layer: call `qp` with them.

    Args:
        size: unknowns, `n`.
        inequalities: how many learned rows of `G`.
        equalities: how many learned rows of `A`, at most `n`.
        lower: bound on every unknown from below; None for none.
        upper: bound on every unknown from above; None for none.
        ridge: $\epsilon$, at least 1e-4 of what `L L'` is for quick and exact solves.
        learn_curvature: learn `L`; otherwise `Q` is `ridge` times the identity.
        solver: of `qp`.
        on_failure: "raise", "warn", "ignore" or "nan" programs without a solution.

    Attributes:
        report: how the last solve went; None before the first.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> layer = ti.nn.QP(8, inequalities=4, equalities=2)
        >>> layer(torch.randn(16, 8)).shape, layer.report.converged
        (torch.Size([16, 8]), True)
    """

    report: Report | None

    def __init__(
        self,
        size: int,
        inequalities: int = 0,
        equalities: int = 0,
        *,
        lower: float | None = None,
        upper: float | None = None,
        ridge: float = 0.1,
        learn_curvature: bool = True,
        solver: Literal["auto"] | InteriorPoint | Clarabel = "auto",
        on_failure: OnFailure | str = "warn",
    ):
        """Draws rows of unit length in the mean, and a curvature near the identity."""
        super().__init__()
        self.size, self.inequalities, self.equalities = size, inequalities, equalities
        self.lower, self.upper, self.ridge, self.on_failure = lower, upper, ridge, on_failure
        self.solver = solver
        require_count(self, "size")
        require_count(self, "inequalities", least=0)
        require(self, "equalities", is_count(equalities, 0) and equalities <= size, f"at most size={size}")
        require(self, "ridge", is_number(ridge) and ridge > 0, "a number > 0, for Q to be definite")
        require(self, "upper", lower is None or upper is None or lower < upper, f"more than lower={lower}")
        check_on_failure(on_failure, "nan")
        self.curvature = nn.Parameter(torch.eye(size)) if learn_curvature else None
        self.inside = nn.Parameter(torch.zeros(size))
        if inequalities:
            self.G = nn.Parameter(torch.randn(inequalities, size) / size**0.5)
            self.room = nn.Parameter(torch.zeros(inequalities))
        if equalities:
            self.A = nn.Parameter(torch.randn(equalities, size) / size**0.5)
        self.solution = None

    def forward(self, q: Tensor, warm_start: QPSolution | None = None) -> Tensor:
        """Solves the program for every row of `q`.

        Args:
            q: the linear part of the objective, `(B, n)`.
            warm_start: an earlier `solution`, of the same batch size.

        Returns:
            The solutions, `(B, n)`.
        """
        if q.dim() != 2 or q.shape[1] != self.size:
            raise ValueError(f"QP: got an input of shape {tuple(q.shape)}, expected (B, {self.size})")
        solution = self.solve(qp, q=q, **self.program(), warm_start=warm_start, solver=self.solver)
        self.solution = solution
        return solution.value

    def program(self) -> dict[str, Any]:
        """All that `qp` takes but `q`, as it is now, differentiable."""
        identity = torch.eye(self.size, dtype=self.inside.dtype, device=self.inside.device)
        Q = self.ridge * identity
        Q = Q if self.curvature is None else Q + self.curvature @ self.curvature.mT
        parts: dict[str, Any] = {"Q": Q}
        point = self._point()
        if self.inequalities:
            parts |= {"G": self.G, "h": self.G @ point + self.room.exp()}
        if self.equalities:
            parts |= {"A": self.A, "b": self.A @ point}
        for name, bound in (("l", self.lower), ("u", self.upper)):
            if bound is not None:
                parts[name] = torch.full_like(self.inside, bound)
        return parts

    def _point(self) -> Tensor:
        """A point strictly between the bounds."""
        if self.lower is not None and self.upper is not None:
            return self.lower + (self.upper - self.lower) * torch.sigmoid(self.inside)
        if self.lower is not None:
            return self.lower + nn.functional.softplus(self.inside)
        return self.inside if self.upper is None else self.upper - nn.functional.softplus(self.inside)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.size}, inequalities={self.inequalities}, equalities={self.equalities}"

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the last solution, which may hold a graph."""
        return {**self.__dict__, "solution": None}

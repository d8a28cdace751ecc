"""A layer whose output solves a convex program that was modelled in cvxpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchimplicit.core.options import check_on_failure, is_count, is_number, require
from torchimplicit.core.status import OnFailure, Report
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.optim.cone.canonical import canonicalise
from torchimplicit.optim.cone.convex import without_graph


class Convex(ImplicitLayer):
    r"""The solution of a convex program as a function of its parameters, differentiable in them.

    The program is written in cvxpy and must follow its rules for parameters (DPP). It is turned into a cone program
    once, here; a call evaluates the data of that program in torch, batched, and solves it. Programs whose constraints
    are equalities and inequalities go to `qp`, in one batch; those with second-order, semidefinite, exponential or
    power cones go to Clarabel one after another, see `cone_program`. What comes back is checked against the optimality
    conditions, forward and backward, sample by sample.

    Computed in float64; values and gradients have the dtype and device of the parameters. The gradient by a parameter
    that is declared symmetric is symmetric. Parameters outside of their declared domain are refused.

    Not for a quadratic program in matrices that are at hand (`qp` needs no cvxpy), for projections on simple sets
    (`optim.projection` has closed forms), nor for large sparse programs: the differentiated matrices are dense.

    Sources: A. Agrawal et al., Differentiable convex optimization layers, arXiv 1910.12430, for the canonical form;
    A. Agrawal et al., Differentiating through a cone program, arXiv 1904.09043, for the derivative.

    Args:
        problem: the `cvxpy.Problem`, minimisation or maximisation. It is not changed, and not needed afterwards.
        parameters: all its `cvxpy.Parameter`s, in the order of the layer's inputs.
        variables: the `cvxpy.Variable`s whose values the layer returns.
        duals: the constraints whose multipliers it returns, too, with cvxpy's signs.
        gp: whether the problem is a geometric program (posynomials, monomials: log-log convex by cvxpy's rules, DGP).
            It is solved in logarithms, with exponential cones; the parameters must be positive, exponents excepted, and
            the multipliers are those of the problem in logarithms.
        solver: "auto", as above; "cone" gives all programs to Clarabel; "qp" insists on `qp`.
        warm_start: start from the last solution where the batch is of the same size, for parameters that change little
            between calls. `qp` tries its active constraints first, the cone route Newton's method from it; Clarabel
            itself cannot start from anywhere.
        tol: the residual of the optimality conditions that counts as solved, on the cone route; see `cone_program`.
        max_steps: of the solver; None takes its own limit.
        on_failure: "warn" (default), "raise" or "ignore" samples without a solution, forward and backward; "nan"
            ignores them and makes their values NaN. They add nothing to any gradient.

    Attributes:
        report: status, steps and residual of every sample in the last call, and in `report.backward` how its
            backward solve went; None before the first.

    Raises:
        ImportError: cvxpy or Clarabel is not installed (the extra `optim`).
        ValueError: the problem is not convex (geometric) by cvxpy's rules, not DPP, has integer, boolean or complex
            variables or cones that are not supported; parameters, variables or constraints do not belong to it.

    Examples:
        >>> import cvxpy as cp, torch, torchimplicit as ti
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.norm(x) <= 1])
        >>> layer = ti.nn.Convex(problem, parameters=[c], variables=[x])
        >>> (ball,) = layer(torch.tensor([[3.0, 4.0], [0.1, 0.2]]))
        >>> [[round(v, 3) for v in row] for row in ball.tolist()]
        [[0.6, 0.8], [0.1, 0.2]]
    """

    report: Report | None

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any],
        variables: Sequence[Any],
        *,
        duals: Sequence[Any] = (),
        gp: bool = False,
        solver: str = "auto",
        warm_start: bool = False,
        tol: float = 1e-8,
        max_steps: int | None = None,
        on_failure: OnFailure | str = "warn",
    ):
        """Canonicalises the problem; solves nothing."""
        super().__init__()
        self.gp, self.solver, self.warm_start, self.tol, self.max_steps = gp, solver, warm_start, tol, max_steps
        self.on_failure = on_failure
        require(self, "gp", isinstance(gp, bool), "True or False")
        self.program = canonicalise(problem, parameters, variables, duals, gp=gp)
        require(self, "solver", solver in ("auto", "qp", "cone"), "'auto', 'qp' or 'cone'")
        fits = solver != "qp" or self.program.cones.polyhedral
        require(self, "solver", fits, f"'auto' or 'cone', for the program has other cones: {self.program.cones}")
        require(self, "warm_start", isinstance(warm_start, bool), "True or False")
        require(self, "tol", is_number(tol) and 0 < tol < 1, "a number between 0 and 1")
        require(self, "max_steps", max_steps is None or is_count(max_steps), "None or an integer >= 1")
        check_on_failure(on_failure, "nan")
        self._last: Any = None

    def forward(self, *parameters: Tensor) -> tuple[Any, ...]:
        """Solves the program for these values of its parameters.

        Args:
            *parameters: each `(B, *shape)`, or `shape` where all samples have the same; its gradient is then the sum.

        Returns:
            The values of `variables`, then the multipliers of `duals`: each `(B, *shape)`, without the batch where no
            parameter has one. A constraint of several multipliers (a second-order cone) gives a tuple of tensors.

        Raises:
            ValueError: number, shape, device or domain of a parameter is wrong; the message has the batch index.
            ConvergenceError: a sample has no solution, with `on_failure="raise"`.
        """
        solution = self.solve(
            self.program.solve,
            parameters,
            solver=self.solver,
            warm_start=self._last,
            tol=self.tol,
            max_steps=self.max_steps,
        )
        if self.warm_start:
            self._last = without_graph(solution.program)
        return (*solution.variables, *solution.duals)

    def reset(self) -> None:
        """Forgets the last solution, so that the next warm start is a cold one."""
        self._last = None

    def extra_repr(self) -> str:
        """The sizes and options."""
        names = ", ".join(rule.name for rule in self.program.rules)
        options = f"solver={self.solver!r}, warm_start={self.warm_start}, on_failure={self.on_failure!r}"
        return f"parameters=({names}), {self.program.cones}, {options}"

"""Canonicalised convex programs: parameters in, variables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.public import public
from torchimplicit.core.status import Report
from torchimplicit.optim.cone.affine import Affine
from torchimplicit.optim.cone.cones import Cones
from torchimplicit.optim.cone.parameters import ParameterRule, stack
from torchimplicit.optim.cone.program import ConeSolution, Data, cone_program
from torchimplicit.optim.quadprog import QPSolution, qp


@dataclass(frozen=True)
class ConvexSolution:
    """The solution of a convex program and how it was found.

    Attributes:
        variables: the values of the variables that were asked for, each `(B, *shape)`, or `shape` where no parameter
            had a batch dimension.
        duals: the multipliers of the constraints that were asked for, likewise; a tuple of tensors where the
            constraint has several (a second-order cone: of `t` and of `x`).
        report: status, steps and residual of the optimality conditions of every program.
        program: the solution of the cone program, or of the quadratic program; `warm_start` takes it.
    """

    variables: tuple[Tensor, ...]
    duals: tuple[Tensor | tuple[Tensor, ...], ...]
    report: Report
    program: ConeSolution | QPSolution


@dataclass(frozen=True)
class ConvexProgram:
    r"""$\min_x \tfrac12 x^\top P x + q^\top x$ subject to $A x + s = b$, $s \in K$, its data affine in parameters.

    Made by `canonicalise`. Holds nothing of cvxpy's, so it can be copied and pickled.

    Attributes:
        rules: what every parameter must be like.
        blocks: from the parameters' entries, row by row, one parameter after another, to `P` (where there is one), `q`,
            `A` and `b`.
        cones: `K`.
        outputs: from `x` to the variables.
        multipliers: from `y` to the multipliers of the user's constraints.
    """

    rules: tuple[ParameterRule, ...]
    blocks: Mapping[str, Affine]
    cones: Cones
    outputs: tuple[Affine, ...]
    multipliers: tuple[tuple[Affine, ...], ...] = ()

    def data(self, values: Sequence[Tensor]) -> Data:
        """`P`, `q`, `A` and `b` in float64, differentiable by the parameters; without a batch where all share one."""
        vector, batched = stack(self.rules, values)
        sizes = torch.tensor([0, *(prod(rule.shape) for rule in self.rules)], device="cpu")
        own = torch.tensor([*batched, False], device="cpu")  # whether a parameter differs between the samples
        found: dict[str, Any] = {"P": None}
        for name, block in self.blocks.items():
            owners = torch.searchsorted(sizes.cumsum(0), block.sources, right=True) - 1
            shared = block.depends and not bool(own[owners].any())
            found[name] = block(vector[:1]).squeeze(0) if shared else block(vector)
        data = Data(**found)
        if any(batched) and data.q.dim() == 1:  # the size of the batch is read off it
            data = data._replace(q=data.q.expand(len(vector), -1))
        return data

    @public
    def solve(
        self,
        values: Sequence[Tensor],
        *,
        solver: str = "auto",
        warm_start: ConeSolution | QPSolution | None = None,
        tol: float = 1e-8,
        max_steps: int | None = None,
        on_failure: Any = "raise",
    ) -> ConvexSolution:
        """Solves for these values of the parameters.

        Args:
            values: of the parameters, each `(B, *shape)` or, for all samples the same, `shape`.
            solver: "auto" gives programs with equalities and inequalities alone to `qp`, others to `cone_program`;
                "qp" and "cone" insist.
            warm_start: the `program` of an earlier solution; one of another batch size or solver is not used.
            tol: see `cone_program`.
            max_steps: of the solver; None takes its own limit.
            on_failure: see `cone_program`.

        Returns:
            A `ConvexSolution`.

        Raises:
            ConvergenceError: some program was not solved (with `on_failure="raise"`).
            ValueError: values do not fit the parameters' shapes or domains.
        """
        data = self.data(values)
        limit = {} if max_steps is None else {"max_steps": max_steps}
        quadratic = self.cones.polyhedral if solver == "auto" else solver == "qp"
        if quadratic:
            found: Any = self._solve_qp(data, warm_start, {**limit, "on_failure": on_failure})
            x, y = found.value, torch.cat([found.duals.equality, found.duals.inequality], -1)
        else:
            warm = warm_start if isinstance(warm_start, ConeSolution) else None
            found = cone_program(*data, self.cones, warm_start=warm, tol=tol, **limit, on_failure=on_failure)
            x, y = found.value, found.dual
        single = x.dim() == 1
        dtype = values[0].dtype if values else torch.get_default_dtype()
        for value in values:
            dtype = torch.promote_types(dtype, value.dtype)

        def shaped(way: Affine, vector: Tensor) -> Tensor:
            result = way(vector.unsqueeze(0) if single else vector).to(dtype)
            return result.squeeze(0) if single and way.depends else result

        variables = tuple(shaped(way, x) for way in self.outputs)
        duals = [tuple(shaped(way, y) for way in ways) for ways in self.multipliers]
        return ConvexSolution(variables, tuple(d[0] if len(d) == 1 else d for d in duals), found.report, found)

    def _solve_qp(self, data: Data, warm_start: Any, options: dict[str, Any]) -> QPSolution:
        P, q, A, b = data
        zero, m = self.cones.zero, self.cones.size
        rows = {}
        if zero:
            rows |= {"A": A[..., :zero, :], "b": b[..., :zero]}
        if m > zero:
            rows |= {"G": A[..., zero:, :], "h": b[..., zero:]}
        warm = warm_start if isinstance(warm_start, QPSolution) and warm_start.value.shape == q.shape else None
        return qp(P, q, **rows, warm_start=warm, **options)


def without_graph(solution: ConeSolution | QPSolution) -> ConeSolution | QPSolution:
    """A solution to start the next solve from, that keeps no graph alive."""
    if isinstance(solution, ConeSolution):
        nothing = solution.start[0][:0]
        return replace(solution, value=nothing, dual=nothing, slack=nothing)
    duals = type(solution.duals)(*(part.detach() for part in solution.duals))
    return replace(solution, value=solution.value.detach(), duals=duals, slack=solution.slack.detach())

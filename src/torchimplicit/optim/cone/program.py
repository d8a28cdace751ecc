"""Cone programs as differentiable functions of their data."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from torchimplicit.adjoint import Implicit, PointCall
from torchimplicit.core import transforms
from torchimplicit.core.options import check_on_failure, is_number, require_count
from torchimplicit.core.problem import Root
from torchimplicit.core.public import public
from torchimplicit.core.status import Report, Solution, Status, react
from torchimplicit.optim.cone.cones import Cones
from torchimplicit.optim.cone.scaling import Scaling
from torchimplicit.optim.cone.search import Data, Search, Start, normal_map
from torchimplicit.optim.cone.sound import LUOrLeastSquares
from torchimplicit.solve import Result

OnFailure = Literal["raise", "warn", "ignore", "nan"]


@dataclass(frozen=True)
class ConeSolution(Solution):
    """The solution of cone programs and how it was found.

    Attributes:
        value: the solutions `x`, `(B, n)` or `(n,)`.
        report: status, steps and residual of every program; in `report.backward` how the last backward solve went.
        dual: multipliers `y` of the rows, in the dual cone, `(B, m)` or `(m,)`.
        slack: `s = b - A x`, in the cone, `(B, m)` or `(m,)`.
        start: what `warm_start` takes: `x`, `y` and `s` in float64, with the batch and without a graph.
    """

    dual: Tensor = field(kw_only=True)
    slack: Tensor = field(kw_only=True)
    start: tuple[Tensor, Tensor, Tensor] = field(kw_only=True)


@public
@transforms.outside_inference_mode
def cone_program(
    P: Tensor | None,
    q: Tensor,
    A: Tensor,
    b: Tensor,
    cones: Cones,
    *,
    warm_start: ConeSolution | None = None,
    tol: float = 1e-8,
    max_steps: int = 200,
    on_failure: OnFailure = "raise",
) -> ConeSolution:
    r"""Solves $\min_x \tfrac12 x^\top P x + q^\top x$ subject to $A x + s = b$, $s \in K$, differentiably in all data.

    Every program is solved by Clarabel, on the CPU, one after another; Newton's method on the optimality conditions
    (`normal_map`) then takes the solution from the solver's eight digits to rounding, and what remains of the
    conditions decides the status, whatever the solver said. This is done, and the residual reported, in units in which
    the longest row of every cone and the largest coefficient of the cost are about one. Derivatives are those of the
    same equation, by the implicit function theorem and dense direct solves that are checked (`LUOrLeastSquares`): in
    reverse and forward mode, under `torch.func` transforms and `vmap`, of every order (with exponential and power cones
    up to the third). Computed in float64; value and gradients have the caller's dtype.

    Where a constraint is met with a multiplier of zero the solution has a kink; the derivative is then that of one of
    the sides. Where the solution is not unique (a linear objective along a flat face) there is none: the backward
    report says `STAGNATED`, and the shortest least-squares gradient is returned.

    Not for quadratic programs, which `qp` solves in batches; nor for large sparse ones: matrices are dense, of
    $(n + m)^2$ entries a program where it is differentiated.

    Sources: P. Goulart and Y. Chen, Clarabel, arXiv 2405.12762; A. Agrawal et al., Differentiating through a cone
    program, arXiv 1904.09043, for the derivative through the projection.

    Args:
        P: symmetric positive semidefinite, `(B, n, n)` or, for all the same, `(n, n)`; None for zero.
        q: `(B, n)` or `(n,)`.
        A: `(B, m, n)` or `(m, n)`.
        b: `(B, m)` or `(m,)`.
        cones: `K`, of size m.
        warm_start: an earlier solution of the same shapes. Clarabel cannot use it; Newton's method starts there, and
            only where that does not arrive is Clarabel asked.
        tol: the largest RMS of the optimality conditions that counts as solved, in those units, relative to one more
            than that of `q`, `b`, `x` and `s`.
        max_steps: of Clarabel.
        on_failure: "raise", "warn" or "ignore" programs that are not solved, forward and backward; "nan" ignores them
            and makes their value NaN. Infeasible and unbounded ones keep the solver's last point otherwise, and add
            nothing to any gradient; so do others whose residual is above the root of `tol`.

    Returns:
        A `ConeSolution`.

    Raises:
        ConvergenceError: some program was not solved (with `on_failure="raise"`).
        ValueError: shapes do not fit, or the options are impossible.
        ImportError: Clarabel is not installed.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import Cones, cone_program
        >>> point = torch.tensor(
        ...     [3.0, 4.0, 0.0], requires_grad=True
        ... )  # project (x, 1) onto the cone |x| <= t = 1
        >>> P, A = torch.eye(2), torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> solution = cone_program(
        ...     P, -point[:2], A, torch.tensor([1.0, 0.0, 0.0]), Cones(soc=(3,))
        ... )
        >>> solution.value.detach()
        tensor([0.6000, 0.8000])
    """
    check_options(tol, max_steps, on_failure)
    data = Data(P, q, A, b)
    check_shapes(data, cones)
    single = all(part is None or part.dim() == dim for part, dim in zip(data, (2, 1, 2, 1), strict=True))
    data = _batched(data)
    scaling = Scaling.of(data, cones)
    data = scaling.scale(data)
    search = Search(cones, _warm(warm_start, scaling), tol, max_steps)
    start, solved = Start.apply(search, *data.map(torch.detach))
    report = search.report
    react(report, "ignore" if on_failure == "nan" else on_failure)
    z = _attached(start, solved, data, cones, report, "ignore" if on_failure == "nan" else on_failure)
    x, v = z.split([data.q.shape[-1], data.b.shape[-1]], dim=-1)
    slack = cones.project(v)
    parts = [x, scaling.dual(slack - v), scaling.slack(slack)]
    start = tuple(part.detach() for part in parts)
    if on_failure == "nan":
        ok = solved if transforms.active() else report.status == Status.CONVERGED
        parts = [torch.where(ok.unsqueeze(1), part, torch.nan) for part in parts]
    parts = [part.to(q.dtype).squeeze(0) if single else part.to(q.dtype) for part in parts]
    x, dual, slack = parts
    return ConeSolution(x, report, dual=dual, slack=slack, start=start)


def _warm(earlier: ConeSolution | None, scaling: Scaling) -> Tensor | None:
    """Where to look first; None where the shapes are others."""
    if earlier is None or earlier.start[1].shape != scaling.rows.shape:
        return None
    x, dual, slack = earlier.start
    return torch.cat([x, scaling.difference(slack, dual)], dim=1)


def _attached(
    start: Tensor,
    solved: Tensor,
    data: Data,
    cones: Cones,
    report: Report,
    on_failure: Literal["raise", "warn", "ignore"],
) -> Tensor:
    """The found points, differentiable by the data wherever there is a solution."""
    if not torch.is_grad_enabled():
        return start
    # A zero cotangent does not keep NaN data out of gradients, for zero times NaN is NaN; being replaced does.
    data = data.map(lambda part: torch.where(solved.reshape(-1, *[1] * (part.dim() - 1)), part, 0))
    problem = Root(partial(_condition, cones=cones), start, (solved, *data))
    tensors = problem.explicit.take_tensors()
    call = PointCall(problem, lambda _, z: Result(z, report), audit=False, on_failure=on_failure)
    return Implicit(LUOrLeastSquares()).solve(call, start, tensors)


def _condition(z: Tensor, solved: Tensor, *data: Any, cones: Cones) -> Tensor:
    """The optimality conditions; where there is no solution, one that depends on nothing."""
    return torch.where(solved.unsqueeze(1), normal_map(z, Data(*data), cones), z)


def check_options(tol: float, max_steps: int, on_failure: str) -> None:
    """Refuses impossible options."""
    if not (is_number(tol) and 0 < tol < 1):
        raise ValueError(f"tol: got {tol!r}, expected a number between 0 and 1")
    require_count("cone_program", max_steps=max_steps)
    check_on_failure(on_failure, "nan")


def check_shapes(data: Data, cones: Cones) -> None:
    """Refuses data that do not fit together."""
    n, m = data.q.shape[-1], cones.size
    batches = set()
    for name, part, shape in zip(Data._fields, data, ((n, n), (n,), (m, n), (m,)), strict=True):
        if part is None:
            continue
        extra = part.dim() - len(shape)
        if extra not in (0, 1) or tuple(part.shape[extra:]) != shape:
            raise ValueError(
                f"{name}: got shape {tuple(part.shape)}, expected {shape}, or that after a batch dimension, for "
                f"{n} variables (by q) and cones of {m} rows"
            )
        if not part.is_floating_point():
            raise TypeError(f"{name}: got {part.dtype}, expected a floating dtype; try .double()")
        batches |= {len(part)} if extra else set()
    if len(batches) > 1:
        raise ValueError(f"got batches of {sorted(batches)} programs, expected one size; leave out what all share")


def _batched(data: Data) -> Data:
    """The data in float64, all of them with a batch dimension."""
    sizes = [len(part) for part, dim in zip(data, (3, 2, 3, 2), strict=True) if part is not None and part.dim() == dim]
    batch = sizes[0] if sizes else 1

    def with_batch(part: Tensor, dim: int) -> Tensor:
        return part.double().expand(batch, *part.shape[part.dim() - dim + 1 :])

    P = None if data.P is None else with_batch(data.P, 3)
    return Data(P, with_batch(data.q, 2), with_batch(data.A, 3), with_batch(data.b, 2))

"""The public function of quadratic programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from torchimplicit.adjoint import unmoved
from torchimplicit.core import transforms
from torchimplicit.core.options import check_on_failure, is_number, require_count
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure, Status, react
from torchimplicit.core.tree import own
from torchimplicit.optim.quadprog.derivative import Optimum, ProgramCall
from torchimplicit.optim.quadprog.program import Program, times
from torchimplicit.optim.quadprog.relaxed import nearest_feasible, uncrossed
from torchimplicit.optim.quadprog.report import Certificate, Determined, Duals, ProgramReport, QPSolution
from torchimplicit.optim.quadprog.smoothing import smooth
from torchimplicit.optim.quadprog.solve import Outcome, solve
from torchimplicit.optim.quadprog.solver import Clarabel, InteriorPoint, check_solver, may_ask
from torchimplicit.optim.quadprog.sparse.call import SparseCall
from torchimplicit.optim.quadprog.sparse.pattern import as_solved
from torchimplicit.optim.quadprog.sparse.solve import by_clarabel, fall_back
from torchimplicit.optim.quadprog.standard_form import Form, assemble, quarantined


@public
@transforms.outside_inference_mode
def qp(
    Q: Tensor | None,
    q: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    C: Tensor | None = None,
    l: Tensor | None = None,  # noqa: E741
    u: Tensor | None = None,
    *,
    warm_start: QPSolution | None = None,
    closest_feasible: bool = False,
    smoothed: float | None = None,
    solver: Literal["auto"] | InteriorPoint | Clarabel = "auto",
    max_steps: int = 50,
    on_failure: OnFailure | str = "raise",
) -> QPSolution:
    r"""Solves convex quadratic programs, exactly, in a batch, differentiably in everything they are made of.

    $$ \min_z \tfrac12 z^\top Q z + q^\top z \quad\text{subject to}\quad G z \le h,\; A z = b,\; \ell \le C z \le u $$

    Pivoting, or an interior-point method where that leads nowhere, finds which bounds are met, an active-set method the
    solution to machine precision, in float64 whatever the dtype of the arguments. `Q` may have any rank, rows may
    repeat and depend on each other, and there need be no interior. Solved is what meets every condition to 1e-9 of the
    size of its own terms. The derivative is that of the Karush-Kuhn-Tucker conditions on the rows that are met (B.
    Amos, J. Z. Kolter, arXiv:1703.00443), at every order, in reverse and forward mode and under `torch.vmap`. Any
    argument may come without a batch dimension: it is shared, and its gradient is the sum.

    **Convention.** A bound that is met with a multiplier of zero (weakly active) counts as not met: the derivative is
    the one-sided one away from it. Where rows repeat each other one of them carries the multiplier; where they depend
    on each other the solution's derivative by them is one of many, see `QPSolution.determined`.

    `Q`, `G`, `A` and `C` may be sparse (COO or CSR), one matrix that all programs share: its gradient has the same
    pattern. Larger ones are solved by Clarabel, on the CPU, one program at a time; `torch.func` does not reach them.

    Not for integers; other cones are modelled with `nn.Convex`. A linear program's solution sits at a corner, where its
    derivative by `q` is zero: see `smoothed`.

    Args:
        Q: symmetric positive semidefinite, `(B, n, n)` or `(n, n)`; None for a linear program.
        q: `(B, n)` or `(n,)`.
        G: `(B, m, n)` or `(m, n)`; with `h`.
        h: `(B, m)` or `(m,)`; infinity where there is no bound, as is everything from 1e20 on.
        A: `(B, p, n)` or `(p, n)`, with `b`; may have redundant rows.
        b: `(B, p)` or `(p,)`.
        C: `(B, k, n)` or `(k, n)`; None, with `l` or `u` given, for bounds on `z` itself.
        l: `(B, k)` or `(k,)`; minus infinity, or None, for no bound.
        u: `(B, k)` or `(k,)`; infinity, or None, for no bound.
        warm_start: an earlier solution of programs of the same shape: its active bounds are tried first.
        closest_feasible: solve infeasible programs with the bounds changed as little as possible, in the sense of
            least squares; differentiably.
        smoothed: weight $\mu$ of a logarithmic barrier that is left in: every multiplier times its slack is $\mu$. The
            solution then depends smoothly on everything, a linear program's too (J. Mandi, T. Guns, arXiv:2010.13943).
        solver: `InteriorPoint()`, `Clarabel()` or "auto": the former for dense programs and sparse ones of up to 200
            unknowns, the latter for larger sparse ones, and for what the former leaves without an answer if it is
            installed (extra `optim`). The report names Clarabel where it was asked; its `by_clarabel` says for which.
        max_steps: of pivoting (3 to 8 are usual), and of the interior-point method, whoever's; hard programs take 60.
        on_failure: "raise", "warn" or "ignore" programs without a solution, which keep what the method ended with and
            add nothing to any gradient; "nan" makes their values NaN, silently. Backward solves with a singular system
            obey it, too.

    Returns:
        A `QPSolution`: `value` `(B, n)`, `duals`, `slack`, `active`, `status`, `residual` (of the Karush-Kuhn-Tucker
        conditions, each over the size of its terms; infinite where nothing was tried), `determined`, `certificate`.

    Raises:
        ConvergenceError: some program is infeasible, unbounded, not convex or not finite (with `on_failure="raise"`).
        ImportError: Clarabel is needed and not installed (`pip install torchimplicit[optim]`).
        NotImplementedError: an option that larger sparse programs do not know.
        TypeError: an argument is no floating tensor.
        ValueError: shapes do not fit, or `Q` is not symmetric.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> point = torch.tensor([[0.9, 0.6], [0.2, -0.5]], requires_grad=True)
        >>> sol = ti.qp(
        ...     torch.eye(2), -point, A=torch.ones(1, 2), b=torch.ones(1), l=torch.zeros(2)
        ... )
        >>> [
        ...     [round(v, 3) for v in z] for z in sol.value.tolist()
        ... ]  # the nearest point of the simplex
        [[0.65, 0.35], [0.85, 0.15]]
    """
    _check_options(warm_start, closest_feasible, smoothed, solver, max_steps, on_failure)
    tensors = transforms.normal((Q, q, G, h, A, b, C, l, u))
    given, form = assemble(*as_solved(tensors, solver, closest_feasible=closest_feasible, smoothed=smoothed))
    if not given.batch:
        return _solved_nothing(given, form)
    guess = None if warm_start is None else _guess(warm_start, form, given)
    react_to: Any = "ignore" if on_failure == "nan" else on_failure
    inside, stated = transforms.active(), uncrossed(given) if closest_feasible else given
    # Inside function transforms values cannot be looked at here: `_run` does.
    invalid, stated = (None, stated) if inside else quarantined(stated, form.dtype)
    program = nearest_feasible(stated) if closest_feasible else stated
    if smoothed is not None:
        z, y, report = _smoothed(program, float(smoothed), max_steps, invalid, react_to)
        active, outcome, solved = torch.zeros_like(y, dtype=torch.int8), None, report.status == Status.CONVERGED
    else:
        options: dict[str, Any] = {"solver": solver, "max_steps": max_steps, "inside": inside}
        run = partial(_run, form=form, guess=guess, invalid=invalid, **options)
        z, y, active, solved, report, outcome = _exact(program, run, react_to)
        z = _on_its_bounds(program, form, z, active) if C is None else z
    if on_failure == "nan":
        z, y = (torch.where(solved.unsqueeze(1), x, torch.nan) for x in (z, y))
    solution = _solution(stated, form, z, y, active, report, outcome)
    react(report, react_to, solution)
    return solution


def _solved_nothing(program: Program, form: Form) -> QPSolution:
    """The solution of no program at all, with gradients of zero."""
    tensors = _tensors(program)
    z, y = unmoved(program.q.detach(), tensors), unmoved(program.upper.detach(), tensors)
    none = torch.zeros(0, dtype=torch.int64, device=z.device)
    report = ProgramReport(none, none, z.new_zeros(0), 0, "quadratic program")
    return _solution(program, form, z, y, torch.zeros_like(y, dtype=torch.int8), report, None)


def _exact(program: Program, run: Callable[[Program], Outcome], on_failure: Any) -> tuple:
    """Solution, multipliers, active bounds, solved, the report and the outcome of programs."""
    tensors = _tensors(program)
    differentiable = transforms.active() or any(x.requires_grad for x in tensors)
    given = run, program.equalities, torch.is_grad_enabled() and differentiable
    if program.is_sparse:
        call = SparseCall(*given, on_failure=on_failure, patterns=program.sparse)
    else:
        call = ProgramCall(*given, on_failure=on_failure)
    found: Any = Optimum.apply(call, *tensors)
    outcome = call.record.outcome
    assert outcome is not None
    report = ProgramReport.of(outcome.status, outcome.point.steps, outcome.residual, outcome.by_clarabel)
    call.record.report = report
    return *found, report, outcome


def _tensors(program: Program) -> list[Tensor]:
    """What derivatives are taken by: of sparse matrices the entries."""
    Q, rows = (x.values for x in program.sparse) if program.is_sparse else (program.Q, program.rows)
    return [Q, program.q, rows, program.lower, program.upper]


def _on_its_bounds(program: Program, form: Form, z: Tensor, active: Tensor) -> Tensor:
    """`z` with entries on bounds of their own exactly there, not off by a rounding: same derivatives."""
    count = form.sizes[2]
    if not count:
        return z
    active = active[:, -count:]
    return torch.where(active > 0, program.upper[:, -count:], torch.where(active < 0, program.lower[:, -count:], z))


def _solution(
    program: Program, form: Form, z: Tensor, y: Tensor, active: Tensor, report: ProgramReport, outcome: Outcome | None
) -> QPSolution:
    p, m, _ = form.sizes
    inequalities = slice(p, p + m)
    slack = form.out(program.upper[:, inequalities] - times(program.rows[:, inequalities], z))
    certificate, loose = None, torch.zeros(len(z), 2, dtype=torch.bool, device=z.device)
    if len(report.status) == len(z):  # not under torch.vmap
        loose = loose if outcome is None or outcome.point.loose is None else outcome.point.loose
        loose = loose if report.converged else loose | (report.status != Status.CONVERGED).unsqueeze(1)
    if outcome is not None and outcome.proof is not None and not transforms.active():
        contradiction, ray = outcome.proof
        certificate = Certificate(form.duals(contradiction), form.out(ray))
    value, duals, slack = own(form.out(z)), Duals(*map(own, form.duals(y))), own(slack)
    determined = Determined(*(~loose).unbind(1))
    return QPSolution(
        value,
        report,
        duals=duals,
        slack=slack,
        active=form.duals(active),
        determined=determined,
        certificate=certificate,
    )


def _smoothed(
    program: Program, weight: float, max_steps: int, invalid: tuple | None, on_failure: OnFailure
) -> tuple[Tensor, Tensor, ProgramReport]:
    """Solution, multipliers and report of smoothed programs; zero where there is no solution."""
    z, y, report = smooth(program, weight, max_steps, on_failure)
    if invalid is not None:
        _note_invalid(report, invalid)
    solved = (report.status == Status.CONVERGED).unsqueeze(1)
    return torch.where(solved, z, 0.0), torch.where(solved, y, 0.0), report


def _run(
    program: Program, form: Form, guess: Tensor | None, solver: Any, max_steps: int, invalid: Any, inside: bool
) -> Outcome:
    """Solves plain programs; those of function transforms have not been looked at yet."""
    if inside:
        invalid, program = quarantined(program, form.dtype)
    if guess is not None and len(guess) != program.batch:  # under torch.vmap
        guess = guess.repeat(program.batch // len(guess), 1)
    rounding = torch.finfo(form.dtype).eps if form.dtype != torch.float64 else 0.0
    if program.is_sparse or isinstance(solver, Clarabel):
        outcome = by_clarabel(program, guess, max_steps, rounding)
    else:
        outcome = solve(program, guess, max_steps, rounding)
        if not outcome.point.sure and may_ask(solver):
            fall_back(program, outcome, max_steps, rounding)
    if invalid is not None:
        outcome.point.sure = False
        _note_invalid(outcome, invalid)
    return outcome


def _note_invalid(found: Outcome | ProgramReport, invalid: tuple[Tensor, Tensor]) -> None:
    """Says of placeholders what they stand for, and that nothing was solved."""
    for which, word in zip(invalid, (Status.NON_FINITE, Status.INFEASIBLE), strict=True):
        found.status = word.where(which, found.status)
        found.residual = torch.where(which, torch.inf, found.residual)


def _guess(earlier: QPSolution, form: Form, program: Program) -> Tensor:
    if not isinstance(earlier, QPSolution):
        raise TypeError(f"qp(warm_start=...): got a {type(earlier).__name__}, expected a QPSolution of an earlier qp")
    guess = form.rows(earlier.active)
    if guess.shape != program.lower.shape:
        raise ValueError(
            f"qp(warm_start=...): got a solution of {len(guess)} programs with {guess.shape[1]} constraints, expected "
            f"{program.batch} with {program.lower.shape[1]}"
        )
    return guess


def _check_options(
    warm_start: Any, closest: Any, smoothed: Any, solver: Any, max_steps: Any, on_failure: Any
) -> None:  # fmt: skip
    check_solver(solver)
    check_on_failure(on_failure, "nan")
    if not isinstance(closest, bool):
        raise ValueError(f"qp(closest_feasible={closest!r}): expected True or False")
    require_count("qp", max_steps=max_steps)
    if smoothed is not None and not (is_number(smoothed) and smoothed > 0):
        raise ValueError(f"qp(smoothed={smoothed!r}): expected a number > 0, such as 1e-3, or None")
    if smoothed is not None and warm_start is not None:
        raise ValueError(
            "qp(smoothed=..., warm_start=...): a smoothed solution meets no bound, so none can be tried first"
        )
    if smoothed is not None and isinstance(solver, Clarabel):
        raise ValueError(
            "qp(smoothed=..., solver=Clarabel()): got a solver that ends on the bounds, expected one that keeps away "
            "from them; try solver=ti.optim.InteriorPoint()"
        )

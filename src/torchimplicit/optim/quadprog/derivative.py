r"""Derivatives of a quadratic program's solution and multipliers, of every order.

Around a solution the rows that meet their bounds stay the same, so that solution and multipliers follow a linear
system, `KKT`. Two autograd functions close under differentiation: `Optimum`, whose derivatives are solves of that
system, and `KKTSolve`, one such solve, whose derivatives are solves again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchimplicit.adjoint.products import fold
from torchimplicit.core import transforms
from torchimplicit.core.call import Call, Record
from torchimplicit.core.status import Status
from torchimplicit.optim.quadprog.kkt import KKT, factor, is_definite
from torchimplicit.optim.quadprog.program import Program, times, times_transposed
from torchimplicit.optim.quadprog.report import ProgramReport
from torchimplicit.optim.quadprog.singular import Singular
from torchimplicit.optim.quadprog.solve import Outcome

TRUSTED = 1e-6  # relative residual of a system whose solution counts as a derivative


@dataclass
class ProgramRecord(Record):
    """How the solves of a call went.

    Attributes:
        outcome: of the forward solve.
    """

    outcome: Outcome | None = None


@dataclass
class Kept:
    """The factor that the forward solve leaves for the backward one."""

    kkt: Any = None


@dataclass(frozen=True)
class ProgramCall(Call):
    """Programs to be solved, and what the backward pass needs of that.

    Attributes:
        run: solves a program; raises on what is no program at all.
        equalities: how many of the rows are equations.
        keep_factor: whether a derivative may be asked for.
        kept: the factor, filled by the forward solve.
    """

    run: Callable[[Program], Outcome]
    equalities: int
    keep_factor: bool
    record: ProgramRecord = field(default_factory=ProgramRecord, kw_only=True)
    kept: Kept = field(default_factory=Kept)

    def matrices(self, Q: Any, rows: Any) -> tuple[Any, Any]:
        """The matrices that tensors stand for, or their tangents; None for None."""
        return Q, rows

    def keep(self, outcome: Outcome) -> None:
        """Keeps how the forward solve went, and its factor where a derivative may ask for it."""
        self.record.outcome = outcome
        if self.keep_factor and (outcome.point.sure or bool((outcome.status == Status.CONVERGED).all())):
            self.kept.kkt = outcome.point.kkt

    def solve(
        self, Q: Tensor, rows: Tensor, active: Tensor, r: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Solution, multipliers and relative residual of the system, see `KKTSolve`; and whether all are trusted."""
        kkt = self.kkt(Q, rows, active)
        z, y, residual = kkt.solve(r, kkt.gather(t))
        y = kkt.scatter(y, rows.shape[1])
        trusted = kkt.sound & (residual <= TRUSTED)
        if bool(trusted.all()):
            return z, y, residual, True
        index = torch.nonzero(~trusted).flatten()
        again = Singular.build(Q[index], rows[index], active[index])
        z[index], y[index], residual[index] = again.solve(r[index], t[index], shortest=True)
        return z, y, residual, False

    def by_symmetric(self, v: Tensor, z: Tensor) -> Tensor:
        """The gradient by a symmetric matrix that enters as `v'Qz`: symmetric, so that a step along it stays so."""
        return torch.bmm(torch.stack((v, z), 2), torch.stack((z, v), 1)) * -0.5

    def by_rows(self, v: Tensor, w: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """The gradient by the rows, which enter as `R'y` and as `R z`."""
        return -torch.bmm(torch.stack((y, w), 2), torch.stack((v, z), 1))

    def kkt(self, Q: Tensor, rows: Tensor, active: Tensor) -> KKT | Singular:
        """The factored systems, from the forward solve if it left them."""
        if self.kept.kkt is not None:  # of this very batch: others are `mapped`
            return self.kept.kkt
        cholesky, sound = factor(Q)
        definite = bool(is_definite(Q, cholesky, sound).all())
        if not definite:
            return Singular.build(Q, rows, active)
        kkt = KKT.build(Q, rows, active, cholesky)
        kkt.careful = True  # nothing is known of the solution
        return kkt

    def mapped(self) -> ProgramCall:
        """The same call for the larger batch that `torch.vmap` makes, whose factor is another."""
        return replace(self, kept=Kept())


class Optimum(Function):
    """Solution `(B, n)`, multipliers `(B, r)`, active bounds `(B, r)`, solved `(B,)`; the last two are labels."""

    @staticmethod
    def forward(
        call: ProgramCall, Q: Tensor, q: Tensor, rows: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[Tensor, ...]:
        """Solves; nothing of it is recorded."""
        curvature, constraints = call.matrices(Q, rows)
        outcome = call.run(Program(curvature, q, constraints, lower, upper, call.equalities))
        point, solved = outcome.point, outcome.status == Status.CONVERGED
        active = point.active if point.sure else torch.where(solved.unsqueeze(1), point.active, 0).to(torch.int8)
        call.keep(outcome)
        return point.z, point.y, active, solved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keeps the program and its solution."""
        ctx.call, Q, _, rows, _, _ = inputs
        z, y, active, solved = output
        ctx.mark_non_differentiable(active, solved)
        ctx.save_for_backward(Q, rows, z, y, active, solved)
        ctx.save_for_forward(Q, rows, z, y, active, solved)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """One solve of the system for both gradients; programs that were not solved add nothing."""
        if transforms.is_mapped_by_autograd(grad_z):
            raise NotImplementedError(
                "is_grads_batched=True (and jacobian(vectorize=True)) cannot reach into a program; try "
                "torch.func.jacrev, or torch.vmap over torch.autograd.grad"
            )
        Q, rows, z, y, active, solved = ctx.saved_tensors
        if ctx.call.kept.kkt is None:  # which is there if all were solved
            solved = solved.unsqueeze(1)
            grad_z, grad_y = torch.where(solved, grad_z, 0.0), torch.where(solved, grad_y, 0.0)
        v, w = KKTSolve.apply(ctx.call, Q, rows, active, grad_z, grad_y)
        _, by_curvature, by_q, by_rows, by_lower, by_upper = ctx.needs_input_grad
        return (
            None,
            ctx.call.by_symmetric(v, z) if by_curvature else None,
            -v if by_q else None,
            ctx.call.by_rows(v, w, z, y) if by_rows else None,
            torch.where(active < 0, w, 0.0) if by_lower else None,
            torch.where(active > 0, w, 0.0) if by_upper else None,
        )

    @staticmethod
    def jvp(
        ctx: Any, _: None, dcurvature: Any, dq: Any, drows: Any, dlower: Any, dupper: Any
    ) -> tuple[Tensor, Tensor, None, None]:
        """The same system, with the tangents on the right."""
        Q, rows, z, y, active, solved = ctx.saved_tensors
        r, t = torch.zeros_like(z), torch.zeros_like(y)
        r = r if dq is None else r - dq
        r, t = _moved(ctx.call, r, t, z, y, dcurvature, drows)
        t = t if dlower is None else t + torch.where(active < 0, dlower, 0.0)
        t = t if dupper is None else t + torch.where(active > 0, dupper, 0.0)
        solved = solved.unsqueeze(1)
        r, t = torch.where(solved, r, 0.0), torch.where(solved, t, 0.0)
        dz, dy = KKTSolve.apply(ctx.call, Q, rows, active, r, t)
        return dz, dy, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: ProgramCall, *tensors: Tensor) -> tuple:
        """The mapped dimension joins the batch."""
        folded = [fold(x, dim, info.batch_size) for x, dim in zip(tensors, in_dims[1:], strict=True)]
        found = Optimum.apply(call.mapped(), *folded)
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in found), (0,) * 4


class KKTSolve(transforms.ForwardOnce):
    """`(z, y)` with `Q z + R'y = r`, `R z = t` on the active rows, and `y = 0` on the others."""

    @staticmethod
    def forward(
        call: ProgramCall, Q: Tensor, rows: Tensor, active: Tensor, r: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Solves with the factor that is there, or a new one."""
        z, y, residual, trusted = call.solve(Q, rows, active, r, t)
        if trusted:
            _tell(call, torch.full_like(active[:, :1].sum(1), int(Status.CONVERGED)), residual)
            return z, y
        status = Status.CONVERGED.where(residual <= TRUSTED, Status.STAGNATED)
        _tell(call, Status.NON_FINITE.unless(residual.isfinite(), status), residual)
        known = residual.isfinite().unsqueeze(1)  # a gradient that is no number goes no further
        return torch.where(known, z, 0.0), torch.where(known, y, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keeps the system and its solution."""
        ctx.call, Q, rows, active, _, _ = inputs
        ctx.save_for_backward(Q, rows, active, *output)
        ctx.save_for_forward(Q, rows, active, *output)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """The system is symmetric: the same solve again."""
        Q, rows, active, z, y = ctx.saved_tensors
        v, w = KKTSolve.apply(ctx.call, Q, rows, active, grad_z, grad_y)
        by_curvature, by_rows = ctx.needs_input_grad[1:3]
        return (
            None,
            ctx.call.by_symmetric(v, z) if by_curvature else None,
            ctx.call.by_rows(v, w, z, y) if by_rows else None,
            None,
            v,
            w,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, dcurvature: Any, drows: Any, _side: None, dr: Any, dt: Any) -> tuple[Tensor, Tensor]:
        """The same system, with what the tangents change on the right."""
        Q, rows, active, z, y = ctx.saved_tensors
        r = torch.zeros_like(z) if dr is None else dr
        t = torch.zeros_like(y) if dt is None else dt
        r, t = _moved(ctx.call, r, t, z, y, dcurvature, drows)
        return KKTSolve.apply(ctx.call, Q, rows, active, r, t)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: ProgramCall, *tensors: Tensor) -> tuple:
        """The mapped dimension joins the batch."""
        folded = [fold(x, dim, info.batch_size) for x, dim in zip(tensors, in_dims[1:], strict=True)]
        found = KKTSolve.apply(call.mapped(), *folded)
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in found), (0, 0)


for _function in (Optimum, KKTSolve):  # autograd asks for it at every call, and Python would read it anew
    _function.forward.__signature__ = inspect.signature(_function.forward)


def _moved(
    call: ProgramCall, r: Tensor, t: Tensor, z: Tensor, y: Tensor, dcurvature: Any, drows: Any
) -> tuple[Tensor, Tensor]:
    """Right-hand sides, less what tangents of the matrices change on the left."""
    curvature, rows = call.matrices(dcurvature, drows)
    if curvature is not None:
        r = r - (times(curvature, z) + times_transposed(curvature, z)) / 2
    if rows is not None:
        r, t = r - times_transposed(rows, y), t - times(rows, z)
    return r, t


def _tell(call: ProgramCall, status: Tensor, residual: Tensor) -> None:
    """Reports how well the derivatives' system was solved."""
    report = ProgramReport(status, torch.ones_like(status), residual, 1, call.backward_name, linear=True)
    outcome = call.record.outcome
    if outcome is not None and outcome.point.loose is not None and len(outcome.point.loose) == len(status):
        loose = outcome.point.loose[:, 1]
        report.ambiguous = loose if bool(loose.any()) else None
    call.finish_backward(report)

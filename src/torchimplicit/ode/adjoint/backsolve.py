"""The continuous adjoint: integrate backward, keep nothing of the way there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchimplicit.adjoint.products import Gradients
from torchimplicit.core import transforms
from torchimplicit.core.options import require, require_count
from torchimplicit.core.tree import norm
from torchimplicit.ode.adjoint.augmented import BackwardLoop, Integral, Marks
from torchimplicit.ode.symplectic import SymplecticSolver
from torchimplicit.path.adjoint.base import PathAdjoint
from torchimplicit.path.adjoint.drift import DriftReport, judge, looser
from torchimplicit.path.call import PathCall
from torchimplicit.path.pair import for_pairs
from torchimplicit.path.record import Path
from torchimplicit.path.solver import AdaptiveSolver, PathSolver
from torchimplicit.path.stepsize import Tolerance, tightest


@dataclass(frozen=True)
class Backsolve(PathAdjoint):
    r"""Solves the adjoint equation back in time, along the path integrated backward: memory that no step adds to.

    One solve for all outputs: its steps end at each of them, where the state is put back on the stored one and the
    output's gradient is added; step sizes are carried on. The gradient is that of the exact path and not of the steps
    that were taken, so it is right to about the tolerance, whatever the size of the loss: the backward solve is scaled
    to it. Costs two evaluations and a vector-Jacobian product for each evaluation of the forward solve, and about half
    as many again for the tensors.

    A contracting field, integrated backward, expands: the path back then leaves the path there, and the gradient is
    wrong. At every output the two are compared; `solution.backward`, a `PathReport` with the field `drift`, says
    by how many tolerances they differed, and a sample with too many is `DRIFTED`, a failure as `on_failure` has it.
    Not for chaotic, stiff or strongly damped fields, nor for second derivatives, forward mode or `torch.func`: there
    `Checkpointed()`, the default, is right.

    Source: R. T. Q. Chen et al., Neural Ordinary Differential Equations, arXiv 1806.07366, appendix B; the seminorm of
    P. Kidger, R. T. Q. Chen, T. Lyons, arXiv 2009.09457.

    Args:
        seminorm: let state and its gradient alone choose the steps. False holds the error of the tensors' gradient,
            too, against the tolerance: all samples' together, so that a step is made only where the batch as a whole
            is accurate; about twice the work.
        solver: for the backward solve; None takes that of the forward solve.
        checkpoints: how many more states of the way to keep, for the backward solve to begin at anew: less drift for
            more memory.
    """

    seminorm: bool = True
    solver: PathSolver | None = None
    checkpoints: int = 0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "seminorm", isinstance(self.seminorm, bool), "True or False")
        known = self.solver is None or isinstance(self.solver, PathSolver)
        require(self, "solver", known, "a path solver such as Tsit5(), or None")
        require_count(self, "checkpoints", least=0)

    def check(self, name: str, solver: PathSolver) -> None:
        """See `PathAdjoint.check`: a state beside its gradient is no separable pair."""
        back = self.solver or solver
        if isinstance(back, SymplecticSolver):
            raise ValueError(
                f"{name}(solver={type(solver).__name__}(...), adjoint=Backsolve(...)): got a symplectic "
                "backward solve, expected another solver, for the adjoint equation is not separable; try "
                "Checkpointed(), or Backsolve(solver=RK4(dt=...))"
            )

    def solve(self, call: PathCall, y0: Tensor, ts: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `PathAdjoint.solve`."""
        if transforms.active():
            raise _unsupported("transforms of torch.func and torch.vmap")
        return BacksolveSolve.apply(call, self, y0, ts, *tensors)


def _unsupported(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"Backsolve() knows first derivatives by backward() alone, and not {what}; try adjoint=Checkpointed()"
    )


class BacksolveSolve(Function):
    """The outputs `(T, B, n)`."""

    @staticmethod
    def forward(ctx: Any, call: PathCall, adjoint: Backsolve, y0: Tensor, ts: Tensor, *tensors: Tensor) -> Tensor:
        """Solves, and keeps what it found at the outputs."""
        values = call.forward(y0, ts, tensors)
        further = _further(call.record.take_path(), ts, values) if adjoint.checkpoints else ()
        ctx.call, ctx.adjoint = call, adjoint
        ctx.save_for_backward(ts, values, call.record.reached, *further, *call.unshared(tensors))
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the start, the times and the tensors."""
        if torch.is_grad_enabled():
            raise _unsupported("second derivatives (create_graph=True)")
        if transforms.level(grad) >= 0 or transforms.is_mapped_by_autograd(grad):
            raise _unsupported("is_grads_batched=True")
        adjoint, (ts, values, reached, *rest) = ctx.adjoint, ctx.saved_tensors
        further, tensors = (rest[:2], rest[2:]) if adjoint.checkpoints else ((), rest)
        _, _, needs_y0, *needs = ctx.needs_input_grad
        cotangent, *found = back(ctx.call, adjoint, ts, values, grad, reached, further, tensors, needs)
        return None, None, cotangent if needs_y0 else None, *found

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Not known."""
        raise _unsupported("forward mode")


def _further(path: Path, ts: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Times `(K, B)` and states `(K, B, n)` that the solve kept; the first ones for samples that it did not keep."""
    times, states = [ts[:0]], [values[:0]]
    for phase in path.phases:
        for number, state in phase.states.items():
            time = phase.steps[number].start
            if phase.rows is not None:
                time, state = ts[0].index_copy(0, phase.rows, time), values[0].index_copy(0, phase.rows, state)
            times.append(time.unsqueeze(0))
            states.append(state.unsqueeze(0))
    return torch.cat(times), torch.cat(states)


def back(
    call: PathCall,
    adjoint: Backsolve,
    ts: Tensor,
    values: Tensor,
    grad: Tensor,
    reached: Tensor,
    further: Sequence[Tensor],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
) -> Gradients:
    """The gradients of the start, of the output times and of the explicit tensors; reports on the backward solve.

    Args:
        call: the call that was solved.
        adjoint: how to integrate backward.
        ts: output times, `(T, B)`.
        values: the states there, `(T, B, n)`.
        grad: their gradients, `(T, B, n)`.
        reached: the time that each sample reached, `(B,)`.
        further: times and states to put the backward solve on the path at, `(K, B)` and `(K, B, n)`; or none.
        tensors: the explicit tensors.
        needs: which of the times and the tensors want a gradient.
    """
    size = _size(grad)
    marks, order = _marks(ts, values, grad / size, further)
    leaves = [
        tensor.detach().requires_grad_(need) for tensor, need in zip(call.unshared(tensors), needs[1:], strict=True)
    ]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    solver = adjoint.solver or call.solver
    own = None
    if isinstance(solver, AdaptiveSolver) and solver.adapts and not adjoint.seminorm:
        own = tightest(solver.rtol), tightest(solver.atol)
    with call.bind(ts, leaves) as field, torch.no_grad():
        integral = Integral(field, wanted, size, solver.order, own) if wanted else None
        limit = solver.max_steps + len(marks.ts)
        loop = BackwardLoop(
            for_pairs(solver, values[0]),
            field,
            reached,
            marks,
            limit,
            integral,
            needs[0],
            Tolerance(*looser(call.solver, solver, values[0]), values[0]),
            call.dt_max,
        )
        loop.begin()
        loop.run()
        arrived = loop.state.next == len(marks.ts)
        times = _of_times(loop, order, len(ts), arrived) * size.T if needs[0] else None
        nfev = field.nfev
    cotangent = torch.where(arrived.unsqueeze(1), loop.state.y.chunk(2, dim=1)[1] * size, 0.0) + grad[0]
    rest = iter(integral.totals if integral is not None else [])
    call.finish_backward(_report(call, loop, nfev))
    return [cotangent, times, *(next(rest) if need else None for need in needs[1:])]


def _size(grad: Tensor) -> Tensor:
    """The size of every sample's largest gradient, `(B, 1)`: what is linear in it shall not depend on it."""
    size = torch.stack([norm(each) for each in grad.unbind()]).amax(0).unsqueeze(1) / grad.shape[2] ** 0.5
    return torch.where(size > 0, size, 1.0)


def _marks(ts: Tensor, values: Tensor, grad: Tensor, further: Sequence[Tensor]) -> tuple[Marks, Tensor]:
    """Where to stop, in the order of the backward solve; and which of the outputs and further states each mark is."""
    if further:
        ts, values = torch.cat((ts, further[0])), torch.cat((values, further[1]))
        grad = torch.cat((grad, torch.zeros_like(further[1])))
    back, order = torch.sort(-ts, dim=0, stable=True)
    rows = order.unsqueeze(2).expand(values.shape)
    grad = grad.gather(0, rows)
    grad[order == 0] = 0.0  # that of the first output is the start's own, and nothing's else
    return Marks(back, values.gather(0, rows), grad), order


def _of_times(loop: BackwardLoop, order: Tensor, count: int, arrived: Tensor) -> Tensor:
    """The gradients of the output times, `(T, B)`."""
    gains = torch.zeros_like(loop.gains).scatter_(0, order, loop.gains)[:count]
    gains[0] = torch.where(arrived, loop.gain_of_start().to(gains.dtype), 0.0)
    return gains


def _report(call: PathCall, loop: BackwardLoop, nfev: int) -> DriftReport:
    state = loop.state
    status, drift = judge(state.status, loop.drift)
    return DriftReport(
        status, state.tried, state.ratio, nfev,
        accepted=state.tried - state.rejected, rejected=state.rejected,
        reached=call.dynamics.user_time(-state.t), drift=drift, adapts=loop.solver.adapts,
    )  # fmt: skip

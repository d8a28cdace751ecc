"""The mutants: a line that decides a verdict, a wrong one in its place, and the tests that must notice."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One wrong line.

    Attributes:
        file: below `src/torchimplicit`.
        why: what is wrong with it, in words.
        old: text that is in the file once.
        new: what to put in its place.
        tests: arguments of pytest.
    """

    file: str
    why: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # Statuses, reactions, norms
    Mutant(
        "core/status.py", "failures are never raised",
        "if not report.converged:", "if report.converged:",
        "tests/core/test_status.py",
    ),
    Mutant(
        "core/status.py", "one converged sample is enough",
        "return bool((self.status == Status.CONVERGED).all())", "return bool((self.status == Status.CONVERGED).any())",
        "tests/core/test_status.py",
    ),
    Mutant(
        "core/tree.py", "the smallest rounding of a nested state counts",
        "return max(torch.finfo(dtype).eps for dtype in self.dtypes)",
        "return min(torch.finfo(dtype).eps for dtype in self.dtypes)",
        "tests/core/test_tree.py",
    ),
    Mutant(
        "core/tree.py", "complex leaves lose their imaginary parts' place",
        "parts = [2 if dtype.is_complex else 1 for dtype in self.dtypes]", "parts = [1 for dtype in self.dtypes]",
        "tests/core/test_tree.py",
    ),
    Mutant(
        "core/problem.py", "the residual's sign",
        "return torch.sub(z, value, out=out)", "return torch.sub(value, z, out=out)",
        "tests/test_equations.py",
    ),
    Mutant(
        "core/problem.py", "writing into the state goes unseen",
        "if transforms.version(z) != version:", "if transforms.version(z) < version:",
        "tests/test_equations.py -k writes",
    ),
    Mutant(
        "core/problem.py", "captured tensors are not looked for",
        "if audited is not None:\n            self.check_captures",
        "if audited is None:\n            self.check_captures",
        "tests/test_equations.py -k captur",
    ),
    # The loop and its samples
    Mutant(
        "solve/loop.py", "a narrowed function is never checked",
        "if not _same(narrow, inner, problem.eps):", "if False:",
        "tests/solve/test_active_batch.py",
    ),
    Mutant(
        "solve/loop.py", "more steps than allowed between looks",
        "for _ in range(min(stride, solver.max_steps - step)):", "for _ in range(stride):",
        "tests/solve/test_loop.py -k steps",
    ),
    Mutant(
        "solve/samples.py", "tolerances are ten times looser",
        "self.rtol = SLACK * options.rtol", "self.rtol = 10 * options.rtol",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "the absolute tolerance is that of the sum",
        "SLACK * options.absolute * self.size + torch.finfo(z.dtype).tiny",
        "SLACK * options.absolute * self.size**3 + 1e-9",
        "tests/solve tests/test_properties.py",
    ),
    Mutant(
        "solve/samples.py", "an iterate that is not the best may arrive",
        "arrived = improves & (residual <= tolerance)", "arrived = self.running & (residual <= tolerance)",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "the answer is the latest iterate",
        "return torch.where(self.latest.unsqueeze(1), z, self.kept)", "return z",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "the reported residual is the latest",
        "self.best = torch.where(improves, residual, self.best)", "self.best = residual",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "what is not finite has stagnated",
        "return torch.where((residual + scale).isfinite(), status, int(Status.NON_FINITE))", "return status",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "nothing diverges",
        "status = torch.where(residual > self.limit, int(Status.DIVERGED), status)", "pass",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "divergence is growth by ten",
        "residual > self.limit", "residual > 1e-5 * self.limit",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "stagnation counts as convergence",
        "torch.where(stalled, int(Status.STAGNATED), int(Status.MAX_STEPS))",
        "torch.where(stalled, int(Status.CONVERGED), int(Status.MAX_STEPS))",
        "tests/solve/test_loop.py",
    ),
    # Linear solvers
    Mutant(
        "linear/solver.py", "refuted claims stay converged",
        "self.status = torch.where(which, failure, self.status)", "pass",
        "tests/linear",
    ),
    Mutant(
        "linear/solver.py", "no claim is ever reopened",
        "self.reopened = (self.status == Status.CONVERGED) & ~(residual <= PLAY * self.target)",
        "self.reopened = (self.status == Status.CONVERGED) & (residual != residual)",
        "tests/linear",
    ),
    Mutant(
        "linear/solver.py", "a breakdown counts as convergence",
        "torch.where(residual <= self.target, int(Status.CONVERGED), int(Status.STAGNATED))",
        "torch.where(residual < math.inf, int(Status.CONVERGED), int(Status.STAGNATED))",
        "tests/linear",
    ),
    Mutant(
        "linear/solver.py", "the transpose is not transposed",
        "return self._run(self.operator.rmatvec, self.inverse and self.inverse.rmatvec, b)",
        "return self._run(self.operator.matvec, self.inverse and self.inverse.matvec, b)",
        "tests/test_contract.py -k linear_solver",
    ),
    Mutant(
        "linear/krylov.py", "an exhausted Krylov space counts as the solution",
        "estimate = torch.where(self.active & ~exhausted, estimate, progress.residual)",
        "estimate = torch.where(self.active & ~exhausted, estimate, 0 * progress.residual)",
        "tests/linear",
    ),
    Mutant(
        "linear/krylov.py", "the estimated residual is never doubted",
        "return ~(10 * self.info.eps * size <= target)", "return ~(0 * size <= target)",
        "tests/linear",
    ),
    Mutant(
        "linear/krylov.py", "Richardson's steps go on where they expand",
        "accepted = active & (size <= bound)", "accepted = active & (size <= 100 * bound)",
        "tests/linear tests/test_contract.py -k linear",
    ),
    Mutant(
        "linear/direct.py", "a singular matrix counts as solved",
        "small = norm(gap / rows) <= self.solver.tolerance(b / rows)", "small = residual.isfinite()",
        "tests/linear",
    ),
    Mutant(
        "linear/neumann.py", "a series that grows counts as converged",
        "finite, shrinks = last.isfinite(), (last < first) | (first == 0)",
        "finite, shrinks = last.isfinite(), (last < torch.inf) | (first == 0)",
        "tests/linear tests/test_equations.py",
    ),
    # Adjoints
    Mutant(
        "adjoint/implicit.py", "the adjoint's sign",
        "torch.autograd.grad(jacobian.value, inputs, -system.solution, allow_unused=True)",
        "torch.autograd.grad(jacobian.value, inputs, system.solution, allow_unused=True)",
        "tests/test_contract.py -k exact_adjoint",
    ),
    Mutant(
        "adjoint/implicit.py", "second derivatives solve with the same matrix",
        "w = LinearSolve.apply(ctx.call, ctx.linear_solver, not ctx.transpose, grad, *inputs)",
        "w = LinearSolve.apply(ctx.call, ctx.linear_solver, ctx.transpose, grad, *inputs)",
        "tests/test_contract.py -k exact_adjoint",
    ),
    Mutant(
        "adjoint/call.py", "backward failures are not said",
        "react(report, self.on_failure)", "react(report, 'ignore')",
        "tests/test_equations.py",
    ),
    Mutant(
        "adjoint/call.py", "what the function wrote to is used again",
        "return [tensor.clone() if i in self.record.mutated else tensor for i, tensor in enumerate(tensors)]",
        "return list(tensors)",
        "tests/test_equations.py tests/nn/test_deq.py",
    ),
    Mutant(
        "adjoint/shine.py", "an exploded factor is not told",
        "status = torch.where(exploded, int(Status.DIVERGED), int(Status.CONVERGED))",
        "status = torch.where(exploded, int(Status.CONVERGED), int(Status.CONVERGED))",
        "tests/adjoint/test_shine.py",
    ),
    # Paths
    Mutant(
        "ode/loop.py", "steps are accepted at twice the tolerance",
        "accept = ratio <= 1 if self.all_running else (ratio <= 1) & who.running",
        "accept = ratio <= 2 if self.all_running else (ratio <= 2) & who.running",
        "tests/ode/test_control.py",
    ),
    Mutant(
        "ode/loop.py", "a walk that is stuck counts as arrived",
        "self._stop(stuck & finite, Status.STEP_TOO_SMALL)", "self._stop(stuck & finite, Status.CONVERGED)",
        "tests/ode/test_quarantine.py",
    ),
    Mutant(
        "ode/loop.py", "a field that is not finite counts as too small a step",
        "self._stop(stuck & ~finite, Status.NON_FINITE)", "self._stop(stuck & ~finite, Status.STEP_TOO_SMALL)",
        "tests/ode/test_odeint.py tests/ode/test_quarantine.py",
    ),
    Mutant(
        "ode/loop.py", "steps that are used up count as arrival",
        "self._stop(self.who.running, Status.MAX_STEPS)", "self._stop(self.who.running, Status.CONVERGED)",
        "tests/ode/test_odeint.py",
    ),
    Mutant(
        "ode/control.py", "errors are relative to the larger of states and one",
        "scale = torch.maximum(y.abs(), end.abs())", "scale = torch.maximum(y.abs(), end.abs()).clamp_min(1)",
        "tests/ode/test_control.py",
    ),
    Mutant(
        "ode/drift.py", "no drift is too far",
        "far = (status == Status.CONVERGED) & ~(drift <= LIMIT)", "far = (status == Status.CONVERGED) & drift.isnan()",
        "tests/ode/test_control.py",
    ),
    Mutant(
        "ode/drift.py", "a walk back that breaks down has not drifted",
        "lost = (status == Status.STEP_TOO_SMALL) | (status == Status.NON_FINITE)",
        "lost = status == Status.NON_FINITE",
        "tests/ode/test_control.py",
    ),
    Mutant(
        "ode/event.py", "the direction is turned round",
        "crosses & (who.side == -self.direction)", "crosses & (who.side == self.direction)",
        "tests/ode/test_event.py",
    ),
    Mutant(
        "ode/event.py", "a path that grazes its event has a derivative",
        "if not transforms.active() and bool((rate == 0).any()):", "if False:",
        "tests/ode/test_event.py",
    ),
    # Programs
    Mutant(
        "optim/quadprog/feasibility.py", "any violation proves infeasibility",
        "return t, (largest(t) > _ZERO * size) & contradicts", "return t, largest(t) > _ZERO * size",
        "tests/optim/test_verdicts.py",
    ),
    Mutant(
        "optim/quadprog/solve.py", "programs without a solution are solved",
        "status = torch.where(solved, int(Status.CONVERGED), int(Status.MAX_STEPS))",
        "status = torch.where(solved, int(Status.CONVERGED), int(Status.CONVERGED))",
        "tests/optim/test_qp.py",
    ),
    Mutant(
        "optim/quadprog/solve.py", "blocked directions count as rays",
        "return torch.where((flat & falls & ~blocked.any(1)).unsqueeze(1), d, 0.0)",
        "return torch.where((flat & falls).unsqueeze(1), d, 0.0)",
        "tests/optim/test_verdicts.py",
    ),
    Mutant(
        "optim/control/lqr.py", "any plan is vouched for",
        "(status == Status.CONVERGED) & ~(residual < ACCURATE)", "(status == Status.CONVERGED) & residual.isnan()",
        "tests/optim/test_verdicts.py",
    ),
]  # fmt: skip

"""Wrong lines: linear solvers."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "linear/solver.py", "refuted claims stay converged",
        "self.status = torch.where(which, failure, self.status)", "pass",
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/solver.py", "no claim is ever reopened",
        "self.reopened = (self.status == Status.CONVERGED) & ~(residual <= PLAY * self.target)",
        "self.reopened = (self.status == Status.CONVERGED) & (residual != residual)",
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/solver.py", "a breakdown counts as convergence",
        "Status.CONVERGED.where(residual <= self.target, Status.STAGNATED)",
        "Status.CONVERGED.where(residual < math.inf, Status.STAGNATED)",
        "tests/linear/test_solver.py",
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
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/krylov.py", "the estimated residual is never doubted",
        "return ~(10 * self.info.eps * size <= target)", "return ~(0 * size <= target)",
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/krylov.py", "Richardson's steps go on where they expand",
        "accepted = active & (size <= bound)", "accepted = active & (size <= 100 * bound)",
        "tests/linear/test_solver.py tests/test_contract.py -k linear",
    ),
    Mutant(
        "linear/direct.py", "a singular matrix counts as solved",
        "small = parted <= self.solver.tolerance(b / rows)", "small = residual.isfinite()",
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/direct.py", "no residual is large enough to look at",
        "if not torch.equal(parted.clamp(max=min(eps**0.5, 100 * eps * b.shape[1]) * size), parted):", "if False:",
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/neumann.py", "a series that grows counts as converged",
        "finite, shrinks = last.isfinite(), (last < first) | (first == 0)",
        "finite, shrinks = last.isfinite(), (last < torch.inf) | (first == 0)",
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/solver.py", "what is not finite has stagnated",
        "status = Status.NON_FINITE.unless(finite, status)",
        "pass",
        "tests/linear/test_solver.py",
    ),
    Mutant(
        "linear/operator.py", "a derivative that is missing is taken for zero",
        'node.name() == "torch::autograd::Error"',
        'node.name() == ""',
        "tests/linear/test_once.py::test_products_and_matrices",
    ),
    Mutant(
        "linear/lanczos.py", "an estimate is as good as an eigenvalue",
        "found.sides[:, -1] * vectors[:, -1, -1].abs()",
        "0 * found.sides[:, -1]",
        "tests/linear/test_lanczos.py",
    ),
]  # fmt: skip

"""Wrong lines: gradients and how they are vouched for."""

from tests.mutants.mutant import Mutant

MUTANTS = [
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
        "tests/test_equations.py::test_backward_failure_is_reported_as_asked",
    ),
    Mutant(
        "adjoint/call.py", "what the function wrote to is used again",
        "return [tensor.clone() if i in self.record.mutated else tensor for i, tensor in enumerate(tensors)]",
        "return list(tensors)",
        "tests/nn/test_deq.py::test_buffers_that_the_cell_changes",
    ),
    Mutant(
        "adjoint/shine.py", "an exploded factor is not told",
        "status = torch.where(exploded, int(Status.DIVERGED), int(Status.CONVERGED))",
        "status = torch.where(exploded, int(Status.CONVERGED), int(Status.CONVERGED))",
        "tests/adjoint/test_shine.py",
    ),
    Mutant(
        "adjoint/system.py", "the true residual is never looked at",
        "doubtful = finite & ~(residual <= limit)",
        "doubtful = finite & (residual != residual)",
        "tests/adjoint/test_coupled.py::test_never_converged_with_a_gradient_that_is_off",
    ),
    Mutant(
        "adjoint/system.py", "whatever stagnates is put down to the others",
        "> PART * size",
        "> -1 * size",
        "tests/test_bad_input.py::test_a_singular_jacobian_at_the_solution_is_reported_by_the_backward_solve",
    ),
    Mutant(
        "adjoint/system.py", "coupling is called stagnation",
        "doubtful & foreign, int(Status.COUPLED)",
        "doubtful & foreign, int(Status.STAGNATED)",
        "tests/adjoint/test_coupled.py::test_never_converged_with_a_gradient_that_is_off",
    ),
    Mutant(
        "adjoint/system.py", "a direct solver is always right",
        "doubtful = doubtful & ~self._is_rounding(gap)",
        "doubtful = doubtful & False",
        "tests/adjoint/test_coupled.py::test_never_converged_with_a_gradient_that_is_off",
    ),
    Mutant(
        "adjoint/system.py", "a badly scaled system counts as unsolved",
        "doubtful = doubtful & ~self._is_rounding(gap)",
        "pass",
        "tests/optim/test_nist.py::test_the_gradient_of_a_fit_is_right_however_its_unknowns_are_scaled",
    ),
    Mutant(
        "adjoint/system.py", "a product that is not finite has stagnated",
        "report.status = torch.where(finite, report.status, int(Status.NON_FINITE))",
        "pass",
        "tests/adjoint/test_quarantine.py::test_a_jacobian_that_is_not_finite_reaches_no_shared_gradient",
    ),
    Mutant(
        "adjoint/system.py", "solutions that are not finite go on",
        "x = torch.where((report.status == Status.NON_FINITE).unsqueeze(1), 0, x)",
        "pass",
        "tests/adjoint/test_system.py::test_inside_transforms_a_singular_sample_adds_nothing_either",
    ),
    Mutant(
        "adjoint/system.py", "the report of a backward solve goes nowhere",
        "self.call.finish_backward(self.report)",
        "pass",
        "tests/test_equations.py::test_backward_failure_is_reported_as_asked",
    ),
    Mutant(
        "adjoint/call.py", "backward failures are raised whatever was asked for",
        "react(report, self.on_failure)",
        "react(report, 'raise')",
        "tests/test_equations.py::test_backward_failure_is_reported_as_asked",
    ),
    Mutant(
        "adjoint/call.py", "backward failures are warned of at most",
        "react(report, self.on_failure)",
        "react(report, 'warn')",
        "tests/test_equations.py::test_backward_failure_is_reported_as_asked",
    ),
    Mutant(
        "adjoint/call.py", "features pass for samples",
        "if found is not None:",
        "if False:",
        "tests/adjoint/test_coupled.py::test_features_taken_for_samples_are_refused",
    ),
    Mutant(
        "adjoint/quarantine.py", "equal rows tell whose they are",
        "_perturbed(tensors[i].detach()[rows], sick)",
        "tensors[i].detach()[rows]",
        "tests/adjoint/test_quarantine.py::test_a_shared_tensor_of_no_slope_keeps_its_second_derivative",
    ),
    Mutant(
        "adjoint/quarantine.py", "nobody asks for derivatives by a row",
        "if _has_gradient(new[i]) and _depends(evaluate, new, i, sick):",
        "if False:",
        "tests/adjoint/test_quarantine.py::test_a_shared_tensor_that_changes_no_value_keeps_its_gradient",
    ),
    Mutant(
        "adjoint/quarantine.py", "rows are looked at where the solution hides a weight",
        "(z[rows], jolted(z[rows]))",
        "(z[rows], z[rows])",
        "tests/test_equations.py::test_healthy_samples_keep_their_gradient_where_the_solution_hides_a_weight",
    ),
    Mutant(
        "adjoint/quarantine.py", "stand-ins get the sick sample's cotangent",
        "pull(quiet, torch.where(sick.unsqueeze(1), 0, grad), z[rows], healthy)",
        "pull(quiet, grad, z[rows], healthy)",
        "tests/adjoint/test_quarantine.py",
    ),
    Mutant(
        "adjoint/quarantine.py", "what halving finds is not said",
        "report.status = torch.where(sick, int(Status.NON_FINITE), report.status)",
        "pass",
        "tests/adjoint/test_quarantine.py::test_a_slope_by_a_parameter_that_is_infinite_is_found_by_halving",
    ),
    Mutant(
        "adjoint/quarantine.py", "what halving finds is not raised",
        "react(report, call.on_failure)",
        "pass",
        "tests/adjoint/test_quarantine.py::test_what_halving_finds_is_raised_by_default",
    ),
    Mutant(
        "adjoint/quarantine.py", "where nobody is left, all has been kept apart",
        "apart = None if len(sick) > 1 and bool(sick.all()) else attempt(sick)", "apart = attempt(sick)",
        "tests/ode/test_quarantine.py::test_a_sick_sample_that_cannot_be_kept_apart_is_said",
    ),
    Mutant(
        "adjoint/quarantine.py", "nobody is told of a leak",
        'if apart is None:\n        warn_of_leak()',
        'if apart is None:\n        pass',
        "tests/adjoint/test_quarantine.py::test_what_cannot_be_kept_apart_is_said",
    ),
    Mutant(
        "adjoint/quarantine.py", "the backward pass has no quarantine",
        "if all_finite(found) or not",
        "if True or not",
        "tests/adjoint/test_quarantine.py",
    ),
    Mutant(
        "core/transforms.py", "stand-ins draw from the global random state",
        'with torch.random.fork_rng([device] if device.type == "cuda" else []):',
        "if True:",
        "tests/core/test_transforms.py",
    ),
    Mutant(
        "adjoint/gate.py", "a gradient that is not finite is not reported",
        "report.status = torch.where(self.lost, int(Status.NON_FINITE), report.status)",
        "pass",
        "tests/adjoint/test_unrolled.py::test_what_is_not_finite_reaches_no_shared_gradient",
    ),
    Mutant(
        "adjoint/gate.py", "the gate has no quarantine",
        "if fine:",
        "if True:",
        "tests/adjoint/test_unrolled.py tests/adjoint/test_quarantine.py",
    ),
    Mutant(
        "adjoint/unrolled.py", "any derivative of steps is the solution's",
        "gap <= self.rtol * norm(grad)",
        "gap < torch.inf",
        "tests/adjoint/test_unrolled.py",
    ),
    Mutant(
        "adjoint/unrolled.py", "a start at the solution has no gradient",
        "near = waiting & (first <= norm(aside))",
        "near = waiting & False",
        "tests/adjoint/test_unrolled.py::test_a_start_at_or_near_the_solution_loses_no_gradient",
    ),
]  # fmt: skip

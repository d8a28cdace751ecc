"""Wrong lines: iterations and what ends them."""

from tests.mutants.mutant import Mutant

MUTANTS = [
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
        "solve/polyalgorithm.py", "the second method never has its turn",
        "if turn.count == self.after:", "if False:",
        "tests/solve/test_polyalgorithm.py -k goes_on",
    ),
    Mutant(
        "solve/polyalgorithm.py", "the two methods keep limits of their own",
        "return replace(method,", "return method or replace(method,",
        "tests/solve/test_polyalgorithm.py -k granted",
    ),
    Mutant(
        "solve/compiled/judge.py", "kernels set the wrong iterate aside",
        "torch.where((failing & latest).unsqueeze(1), step.before, kept)",
        "torch.where((failing & latest).unsqueeze(1), step.z, kept)",
        "tests/solve/compiled/test_judge.py",
    ),
    Mutant(
        "solve/compiled/judge.py", "nobody diverges in kernels",
        "torch.where(size > step.limit,", "torch.where(size < 0,",
        "tests/solve/compiled/test_judge.py",
    ),
    Mutant(
        "solve/compiled/mixing.py", "residuals that were never there are combined",
        "* known.unsqueeze(1)", "* known.new_ones(())",
        "tests/solve/compiled/test_judge.py -k combinations",
    ),
    Mutant(
        "solve/samples.py", "tolerances are ten times looser",
        "self.rtol = SLACK * options.rtol", "self.rtol = 10 * options.rtol",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "the absolute tolerance is that of the sum",
        "SLACK * options.absolute * self.size + torch.finfo(z.dtype).tiny",
        "SLACK * options.absolute + torch.finfo(z.dtype).tiny",
        "tests/solve/test_loop.py::test_tolerances_are_of_the_root_mean_square_which_copies_of_unknowns_do_not_change",
    ),
    Mutant(
        "solve/coupling.py", "a sample that others have moved on has converged",
        "return arrived & ~(size <=", "return arrived & ~(size >= 0 *",
        "tests/adjoint/test_coupled.py::test_a_sample_that_a_failing_one_has_moved_on_has_not_converged",
    ),
    Mutant(
        "solve/coupling.py", "who has stopped before others has converged for good, where nobody fails",
        "if not (samples.apart or _some_failed(samples)):", "if not _some_failed(samples):",
        "tests/solve/test_coupling.py -k starts_at_a_solution",
    ),
    Mutant(
        "solve/coupling.py", "a residual that has grown is none of its own",
        "torch.add(size, way, alpha=2) <= FAIR", "way <= FAIR",
        "tests/solve/test_coupling.py",
    ),
    Mutant(
        "solve/coupling.py", "a root that others have moved on is one",
        "return grown & ~((ahead.excess <= PLAY) | ahead.settled), size", "return grown & (size < 0), size",
        "tests/solve/test_coupling.py",
    ),
    Mutant(
        "solve/loop.py", "the residual of who is held is that of holding",
        "samples.beside = residual.detach()", "pass",
        "tests/solve/test_coupling.py -k starts_at_a_solution",
    ),
    Mutant(
        "solve/runaway.py", "an unknown is judged beside what another one of its sample still is",
        "torch.where(still, torch.maximum(most, largest), largest)",
        "torch.where(out, torch.maximum(most, largest), largest)",
        "tests/solve/test_claims.py -k chain_of_warm_starts",
    ),
    Mutant(
        "core/tree.py", "what half precision has no number for is infinite",
        "piece.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)", "piece.clone()",
        "tests/core/test_tree.py::test_what_half_precision_has_no_number_for_is_its_largest_one_and_not_infinite",
    ),
    Mutant(
        "solve/samples.py", "an iterate that is not the best may arrive",
        "torch.where(failing, failure != Status.MAX_STEPS, improves & arrived)",
        "torch.where(failing, (failure != Status.MAX_STEPS) | arrived, arrived)",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "who has stopped arrives again",
        "self.atol, self.lift = self.atol.masked_fill(stops, -math.inf),", "self.atol, self.lift = self.atol,",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "who still runs in the end has converged",
        "self.status = Status.MAX_STEPS.where(self.running, self.status)", "pass",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "the answer is the latest iterate",
        "return torch.where(self.latest.unsqueeze(1), z, self.kept) if self.any_running else self.kept", "return z",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "the reported residual is the latest",
        "self.best = torch.where(improves, size, self.best)", "self.best = size",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "what is not finite has stagnated",
        "return Status.NON_FINITE.unless((residual + scale).isfinite(), status)", "return status",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "nothing diverges",
        "status = Status.DIVERGED.where(residual > self.limit, status)", "pass",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "divergence is growth by ten",
        "residual > self.limit", "residual > 1e-5 * self.limit",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/samples.py", "stagnation counts as convergence",
        "Status.STAGNATED.where(stalled, Status.MAX_STEPS)",
        "Status.CONVERGED.where(stalled, Status.MAX_STEPS)",
        "tests/solve/test_loop.py",
    ),
    Mutant(
        "solve/claims.py", "ten times the tolerance is near enough",
        "(ahead.excess <= 1)",
        "(ahead.excess <= 10)",
        "tests/solve/test_claims.py::test_double_roots_are_found_to_the_tolerance",
    ),
    Mutant(
        "solve/claims.py", "every short step is a solution",
        "(ahead.excess <= 1)",
        "(ahead.excess <= torch.inf)",
        "tests/solve/test_claims.py::test_a_badly_scaled_root_is_not_claimed_before_it_is_one",
    ),
    Mutant(
        "solve/runaway.py", "who has run off may have arrived",
        "return (lost & (FARTHER * z.abs() >= largest)).any(1)",
        "return torch.zeros_like(ahead.finite)",
        "tests/solve/test_ahead.py::test_an_unknown_that_has_run_to_where_it_has_no_influence_is_at_no_root",
    ),
    Mutant(
        "solve/claims.py", "whatever has grown is said to run off",
        "& grown & self.away & falls",
        "& grown & falls",
        "tests/solve/test_ahead.py::test_who_has_grown_but_grows_no_more_does_not_run_off",
    ),
    Mutant(
        "solve/claims.py", "what is not finite has stagnated",
        "Status.NON_FINITE.where(failing & ~sound",
        "Status.STAGNATED.where(failing & ~sound",
        "tests/solve/test_claims.py::test_energies_that_are_no_numbers_are_not_finite",
    ),
    Mutant(
        "solve/claims.py", "infinite energies are none",
        "Status.NON_FINITE.where(asks & ~ahead.finite",
        "Status.CONVERGED.where(asks & ~ahead.finite",
        "tests/solve/test_claims.py::test_energies_that_are_no_numbers_are_not_finite",
    ),
    Mutant(
        "solve/ahead.py", "a function that has become flat has a root there",
        "(claim.residual.abs() <= eps * claim.highest).all(1)",
        "(claim.residual.abs() < 0).all(1)",
        "tests/solve/test_claims.py::test_an_energy_without_a_minimum_has_none",
    ),
    Mutant(
        "solve/docket.py", "who is refused claims nothing of what came since",
        "(later.move <= target)",
        "(later.move < 0)",
        "tests/solve/test_docket.py",
    ),
    Mutant(
        "solve/docket.py", "what is granted is where a sample has gone on to",
        "self.claims = self.claims.where(self.waiting, claim)",
        "self.claims = claim",
        "tests/solve/test_docket.py",
    ),
    Mutant(
        "solve/ahead.py", "a singular Jacobian is as good as any",
        "UNEXPLAINED = 1e-3",
        "UNEXPLAINED = 1e9",
        "tests/solve/test_ahead.py::test_a_singular_jacobian_has_the_shortest_step_where_the_residual_has_an_answer_and_none_else",
    ),
    Mutant(
        "solve/ahead.py", "noise excuses any step",
        "torch.maximum(tolerance, torch.minimum(noise, eps**0.5 * size))",
        "torch.maximum(tolerance, noise)",
        "tests/solve/test_ahead.py",
    ),
    Mutant(
        "solve/ahead.py", "functions are a million times noisier",
        "NOISE = 10.0",
        "NOISE = 1e7",
        "tests/solve/test_ahead.py::test_only_rounding_excuses_a_step_that_is_too_long",
    ),
    Mutant(
        "solve/ahead.py", "a step that was not solved for is short",
        "torch.where(solved, norm(result.x) / root, torch.nan)",
        "(norm(result.x) / root)",
        "tests/solve/test_ahead.py",
    ),
    Mutant(
        "solve/ahead.py", "slopes along flat directions are no hindrance",
        "answered = finite & (left <= allowed)",
        "answered = finite",
        "tests/solve/test_ahead.py::test_a_singular_jacobian_has_the_shortest_step_where_the_residual_has_an_answer_and_none_else",
    ),
    Mutant(
        "solve/loop.py", "stopped samples keep a gradient",
        "residual = problem(torch.where(running, z, held))",
        "residual, running, held = problem(z), torch.ones_like(running), z",
        "tests/adjoint/test_unrolled.py::test_newton_goes_on_beside_a_sample_that_has_arrived",
    ),
    Mutant(
        "solve/samples.py", "residuals below the dtype's squares have arrived",
        "not exact and (fails or (self.minute and stopping > 0))",
        "False",
        "tests/solve/test_loop.py -k squares",
    ),
]  # fmt: skip

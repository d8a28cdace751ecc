"""Wrong lines: programs, cones, sets."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "optim/quadprog/repeats.py", "bounds of zero have no rounding",
        "equal = equal | ((crossed > 0) & (crossed <= _ROUNDING * reach))", "pass",
        "tests/optim/quadprog/test_repeats.py",
    ),
    Mutant(
        "optim/quadprog/qp.py", "what stands in for no numbers is as good as solved",
        "outcome.point.sure = False", "pass",
        "tests/optim/quadprog/test_qp.py::test_what_is_no_number_gets_no_gradient_from_function_transforms_either",
    ),
    Mutant(
        "optim/quadprog/definite.py", "pivoting in vain goes on for long",
        "_FEW_PIVOTS if crowded else _PIVOTS", "_PIVOTS",
        "tests/optim/quadprog/test_operations.py::test_pivoting_in_vain_costs_little",
    ),
    Mutant(
        "optim/quadprog/sparse/solve.py", "what was found is vouched for, whatever it is",
        "if bool(best.point.optimal):", "if best is not None:",
        "tests/optim/quadprog/sparse/test_certificate.py",
    ),
    Mutant(
        "optim/quadprog/sparse/solve.py", "concave sparse programs are convex",
        "convex = is_convex(Q.values, Q.row, Q.column, Q.size[0], shift)", "convex = True",
        "tests/optim/quadprog/sparse/test_solve.py::test_other_verdicts",
    ),
    Mutant(
        "optim/quadprog/sparse/certificate.py", "what Clarabel claims proves itself",
        "return torch.where(proves(program, found).unsqueeze(1), found, 0.0)", "return found",
        "tests/optim/quadprog/sparse/test_certificate.py::test_a_claim_that_proves_nothing_is_not_believed",
    ),
    Mutant(
        "optim/quadprog/sparse/certificate.py", "points that meet all bounds are called infeasible",
        "missed = not bool(feasible(program, z))", "missed = True",
        "tests/optim/quadprog/sparse/test_certificate.py",
    ),
    Mutant(
        "optim/quadprog/sparse/factor.py", "corrections are not combined: dependent rows are solved half",
        "for earlier, its in steps:", "for earlier, its in steps[:0]:",
        "tests/optim/quadprog/sparse/test_factor.py",
    ),
    Mutant(
        "optim/quadprog/exchange.py", "unknowns that are zero are held to a rounding of their own",
        "_ROUNDING * size + torch.finfo(z.dtype).eps * program.length * largest(z, keepdim=True)", "_ROUNDING * size",
        "tests/fuzz/test_fuzz.py::test_what_was_wrong_once_is_right",
    ),
    Mutant(
        "optim/quadprog/exchange.py", "of two bounds next to each other either is right",
        "found = exchanged(own, point.take(at), build)", "found = point.take(at)",
        "tests/optim/quadprog/test_exchange.py",
    ),
    Mutant(
        "optim/quadprog/exchange.py", "any of the rows that contradict each other leaves",
        "row = ratio.argmin()", "row = ratio.nan_to_num(posinf=-1.0).argmax()",
        "tests/optim/quadprog/test_exchange.py",
    ),
    Mutant(
        "optim/quadprog/sparse/certificate.py", "a small curvature holds back as little as rounding",
        "M = M / torch.where(size > 0, size, 1.0).unsqueeze(2)", "pass",
        "tests/optim/quadprog/sparse/test_certificate.py",
    ),
    Mutant(
        "optim/quadprog/sparse/kkt.py", "derivatives are in the solver's units",
        "z[at], y[at] = dz * units.z, dy * units.y", "z[at], y[at] = dz, dy",
        "tests/optim/quadprog/sparse/test_call.py",
    ),
    Mutant(
        "optim/quadprog/certificate.py", "weights that do not balance prove infeasibility",
        " & (short > reach * times_transposed(program.rows, y).abs().sum(1))", "",
        "tests/optim/quadprog/test_certificate.py",
    ),
    Mutant(
        "optim/quadprog/certificate.py", "points that meet all bounds are called infeasible",
        "torch.nonzero(~feasible(program, z))", "torch.nonzero(feasible(program, z) | True)",
        "tests/optim/quadprog/test_certificate.py",
    ),
    Mutant(
        "optim/quadprog/solve.py", "programs without a solution are solved",
        "status = Status.CONVERGED.where(solved, Status.MAX_STEPS)",
        "status = Status.CONVERGED.where(solved, Status.CONVERGED)",
        "tests/test_remedies.py",
    ),
    Mutant(
        "optim/quadprog/certificate.py", "blocked directions count as rays",
        "& ~blocked.any(1) & ~bent.any(1)", "& ~bent.any(1)",
        "tests/optim/quadprog/test_certificate.py",
    ),
    Mutant(
        "optim/quadprog/verdict.py", "multipliers that cancel hide a slope",
        "_CANCELS = 1e3", "_CANCELS = 1e30",
        "tests/optim/quadprog/test_verdict.py",
    ),
    Mutant(
        "optim/quadprog/verdict.py", "a multiplier needs no bound",
        "largest(torch.minimum(gap, multiplier))", "0 * largest(torch.minimum(gap, multiplier))",
        "tests/optim/quadprog/test_verdict.py",
    ),
    Mutant(
        "optim/quadprog/far.py", "bounds are measured in rows' own units alone",
        "size = 1 / Units.of(program).rows", "pass",
        "tests/optim/quadprog/test_hard_programs.py::test_numbers_that_are_not_far_out_of_all_rows",
    ),
    Mutant(
        "optim/quadprog/far.py", "a mate's far bounds are everybody's",
        "apart = spread & (", "apart = (",
        "tests/optim/quadprog/test_hard_programs.py::test_mates_with_far_bounds_change_nothing",
    ),
    Mutant(
        "optim/quadprog/singular.py", "one force looks for what nothing holds",
        "_FORCES = 3", "_FORCES = 1",
        "tests/optim/quadprog/test_determined.py::test_no_direction_is_missed_by_chance",
    ),
    Mutant(
        "optim/quadprog/far.py", "large bounds are dropped for good",
        "    yield None", "    yield torch.full_like(size, 1e5)",
        "tests/optim/quadprog/test_hard_programs.py",
    ),
    Mutant(
        "optim/quadprog/singular.py", "all multipliers are unique",
        "moved[:, f:, _FORCES:].any(2).any(1)", "torch.zeros_like(self.Q[:, 0, 0], dtype=torch.bool)",
        "tests/optim/quadprog/test_determined.py",
    ),
    Mutant(
        "optim/quadprog/singular.py", "what a shift leaves takes the place of the right-hand side",
        "torch.zeros_like(right), right.clone()", "torch.zeros_like(right), right",
        "tests/optim/quadprog/test_singular.py",
    ),
    Mutant(
        "optim/quadprog/singular.py", "small differences are solved to the rounding of their terms",
        "        if not bool(better.any()):", "        if not bool((better & (best > _ACCURATE)).any()):",
        "tests/optim/quadprog/test_singular.py",
    ),
    Mutant(
        "optim/quadprog/definite.py", "what is left of large numbers has lost no digits",
        "optimal = kkt.sound, whole & (", "optimal = kkt.sound, (",
        "tests/optim/quadprog/test_definite.py",
    ),
    Mutant(
        "optim/quadprog/kkt.py", "derivatives of what is left of large numbers have lost no digits",
        "blind = self.careful and not step", "blind = False",
        "tests/optim/quadprog/test_definite.py",
    ),
    Mutant(
        "optim/quadprog/derivative.py", "derivatives by a new factor have lost no digits",
        "        kkt.careful = True", "        kkt.careful = False",
        "tests/optim/quadprog/test_definite.py",
    ),
    Mutant(
        "optim/quadprog/kkt.py", "a step of care is taken wherever it leads",
        "residual <= best.clamp_min(_ACCURATE) if blind", "residual < torch.inf if blind",
        "tests/optim/quadprog/test_definite.py",
    ),
    Mutant(
        "optim/quadprog/definite.py", "a row that is met to fewer digits refutes a guess",
        "slack | (near & (active == 0))", "slack | near",
        "tests/optim/quadprog/test_definite.py",
    ),
    Mutant(
        "optim/quadprog/kkt.py", "programs that join a batch lose the care that they need",
        "self.careful = self.careful or other.careful", "pass",
        "tests/optim/quadprog/test_definite.py",
    ),
    Mutant(
        "optim/control/lqr.py", "bounds are met to the rounding of a plan without them",
        "policy = held(data, policy, by_kind(data, program.active.bounds)[0])", "pass",
        "tests/optim/control/test_lqr.py::test_a_control_at_its_bound_is_the_bound_to_the_bit",
    ),
    Mutant(
        "optim/control/lqr.py", "any plan is vouched for",
        "(status == Status.CONVERGED) & ~(residual < ACCURATE)", "(status == Status.CONVERGED) & residual.isnan()",
        "tests/optim/control/test_lqr.py::test_a_plan_whose_slope_is_not_zero_is_not_vouched_for",
    ),
    Mutant(
        "optim/quadprog/active_set.py", "weakly active bounds count as met",
        "(active * multiplier <= _SIGN * largest(multiplier, keepdim=True))",
        "(active * y < 0)",
        "tests/optim/quadprog/test_qp.py::test_weakly_active_bounds_count_as_not_met",
    ),
    Mutant(
        "optim/quadprog/verdict.py", "a residual of one is good",
        "TOLERANCE = 1e-9", "TOLERANCE = 1.0",
        "tests/optim/quadprog/test_verdict.py",
    ),
    Mutant(
        "optim/quadprog/derivative.py", "a factor serves any batch",
        "        return replace(self, kept=Kept())", "        return self",
        "tests/optim/quadprog/test_derivative.py",
    ),
    Mutant(
        "optim/quadprog/derivative.py", "a derivative that is not there is vouched for",
        "CONVERGED.where(residual <= TRUSTED,",
        "CONVERGED.where(residual < torch.inf,",
        "tests/optim/quadprog/test_qp.py::test_singular_backward_solve_is_reported",
    ),
    Mutant(
        "optim/cone/search.py", "what the interior point says is believed",
        "doubtful = Status.STAGNATED.where(status == Status.CONVERGED, status)",
        "doubtful = status",
        "tests/optim/cone/test_cone.py::test_tol_decides_what_counts_as_solved",
    ),
    Mutant(
        "optim/cone/search.py", "any residual is small",
        "return residual <= tol *",
        "return residual <= 1e9 * tol *",
        "tests/optim/cone/test_cone.py::test_too_few_steps_are_reported_as_such",
    ),
    Mutant(
        "optim/cone/search.py", "concave objectives are accepted",
        "Status.NONCONVEX.where(concave, status)",
        "status",
        "tests/optim/cone/test_cone.py::test_a_program_that_is_not_convex_is_called_so",
    ),
    Mutant(
        "optim/cone/sound.py", "derivatives that are not there are vouched for",
        "small = residual <= torch.finfo(b.dtype).eps ** 0.5 * norm(right)",
        "small = residual < torch.inf",
        "tests/optim/cone/test_cone.py::test_where_the_solution_is_not_unique_the_backward_solve_says_so",
    ),
    Mutant(
        "optim/projection/section.py", "a plane that misses the box has points in it",
        "missed = (plain[3] < low - rounding) | (plain[3] > high + rounding)",
        "missed = plain[3] != plain[3]",
        "tests/optim/projection/test_projection.py::test_empty_sets_and_wrong_shapes_are_refused_by_name",
    ),
    Mutant(
        "optim/projection/batch.py", "what is not finite has a projection",
        "return y.masked_fill(self.spread(nonfinite), torch.nan)",
        "return y",
        "tests/optim/projection/test_projection.py::test_a_sample_that_is_not_finite_touches_no_other",
    ),
    Mutant(
        "optim/projection/verdict.py", "a point that misses its condition is one that meets it",
        "off = nonfinite | ~(gap <= play + torch.finfo(gap.dtype).tiny)",
        "off = nonfinite",
        "tests/optim/projection/test_conditions.py::test_a_point_that_misses_its_condition_is_told",
    ),
    Mutant(
        "optim/projection/verdict.py", "numbers below the normal ones have digits",
        "play + torch.finfo(gap.dtype).tiny",
        "play",
        "tests/optim/projection/test_conditions.py::test_sets_of_the_smallest_size_there_is",
    ),
    Mutant(
        "optim/projection/section.py", "a point that is far away is looked at once",
        "_LOOKS = 5",
        "_LOOKS = 1",
        "tests/optim/projection/test_conditions.py::test_far_caps_and_small_totals_are_the_simplex",
    ),
    Mutant(
        "optim/projection/simplex.py", "an entry too many is in the support",
        "supported = entries * (ranks + 1) > entries",
        "supported = entries * (ranks + 1) >= entries",
        "tests/optim/projection/test_projection.py::test_a_point_that_cannot_move_has_no_derivative_by_what_is_projected",
    ),
    Mutant(
        "optim/smooth/second_order.py", "saddles are minima",
        "Status.SADDLE.where(arrived & falls, report.status)",
        "report.status",
        "tests/optim/smooth/test_argmin.py::test_newton_finds_the_maximum_that_is_near_and_descent_leaves_it",
    ),
    Mutant(
        "optim/smooth/second_order.py", "minima are saddles by rounding",
        "falls = lowest < -(residual.eps**0.5)",
        "falls = lowest < (residual.eps**0.5)",
        "tests/optim/smooth/test_argmin.py::test_a_minimum_at_the_bottom_of_a_long_valley_is_no_saddle",
    ),
    Mutant(
        "optim/control/lqr.py", "costs without a minimum have one",
        "Status.NONCONVEX.where(weak, Status.CONVERGED)",
        "Status.CONVERGED.where(weak, Status.CONVERGED)",
        "tests/optim/control/test_lqr.py::test_a_sample_without_a_minimum_is_flagged_alone",
    ),
    Mutant(
        "optim/maxsat.py", "a descent that is not finite goes on",
        "~rms.isfinite()",
        "rms.isnan() & False",
        "tests/nn/programs/test_maxsat.py::test_weights_that_are_not_finite_are_told",
    ),
    Mutant(
        "optim/maxsat.py", "a gradient that is not finite counts as solved",
        "status = Status.NON_FINITE.unless(finite, report.status)",
        "status = report.status",
        "tests/optim/test_maxsat.py",
    ),
]  # fmt: skip

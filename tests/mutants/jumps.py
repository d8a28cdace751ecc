"""Wrong lines: jumps, doses, the largest step."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "path/field/between.py", "a field is asked at the very time of a jump",
        "inside = torch.minimum(torch.maximum(t, self.low), self.high)", "inside = t",
        "tests/path/jumps/test_jumps.py::test_the_limits_of_a_field_are_seen_whichever_way_it_compares",
    ),
    Mutant(
        "path/field/between.py", "a time at the side of a jump has no derivative",
        "return t + (inside - t).detach() if torch.is_grad_enabled() else inside", "return inside",
        "tests/path/jumps/test_jumps.py::test_the_derivative_by_the_time_is_seen_at_a_jump",
    ),
    Mutant(
        "path/loop.py", "steps have no largest",
        "state.h = torch.minimum(state.h, self.largest)", "pass",
        "tests/path/test_dt_max.py::test_no_step_is_longer_and_every_sample_has_its_own",
    ),
    Mutant(
        "ode/compiled/kernel.py", "compiled steps have no largest",
        "h = h if largest is None else torch.minimum(h, largest)", "pass",
        "tests/path/test_dt_max.py::test_compiled_solves_keep_to_it",
    ),
    Mutant(
        "ode/adjoint/backsolve.py", "steps back have no largest",
        "call.dt_max,", "None,",
        "tests/path/test_dt_max.py::test_every_adjoint_keeps_to_it",
    ),
    Mutant(
        "path/times.py", "given steps have a largest",
        "if not isinstance(solver, AdaptiveSolver) or not solver.adapts:", "if not isinstance(solver, AdaptiveSolver):",
        "tests/path/test_dt_max.py::test_refused",
    ),
    Mutant(
        "path/jumps/stretches.py", "a dose from before the first time is given",
        "dosed = None, (times >= first) & ahead", "dosed = None, ahead",
        "tests/path/jumps/test_jumps.py::test_what_lies_at_the_ends_or_outside",
    ),
    Mutant(
        "path/jumps/stretches.py", "the end of a stretch has the gradient of an output",
        "& (t < end)", "& (t <= end)",
        "tests/path/jumps/test_jumps.py::test_an_output_at_a_jump_belongs_to_the_side_before",
    ),
    Mutant(
        "path/jumps/stretches.py", "two jumps at a time have a gradient each",
        "if equal and differentiable:", "if False:",
        "tests/path/jumps/test_jumps.py::test_two_jumps_at_a_time_add_up_and_their_gradients_are_refused",
    ),
    Mutant(
        "path/jumps/stretches.py", "doses are in the order of the jumps as given",
        "jumps.doses.gather(0, order.unsqueeze(2).expand_as(jumps.doses))", "jumps.doses",
        "tests/path/jumps/test_jumps.py::test_what_lies_at_the_ends_or_outside",
    ),
    Mutant(
        "path/jumps/stretched.py", "an output at a jump moves with it",
        "if stretches.wants_times and stretches.output_at_end[k]:", "if False:",
        "tests/path/jumps/test_jumps.py::test_an_output_at_a_jump_belongs_to_the_side_before",
    ),
    Mutant(
        "path/jumps/stretched.py", "a dose at the start has no gradient by its time",
        "if k == 0 and stretches.jumps_at_start and stretches.wants_times:", "if False:",
        "tests/path/jumps/test_jumps.py::test_a_dose_at_the_start_can_only_be_later",
    ),
    Mutant(
        "path/jumps/stretched.py", "a sample that failed goes on behind a jump",
        "stopped = self.stopped | (record.reached < stretches.edges[k + 1].detach())", "stopped = self.stopped",
        "tests/path/jumps/test_jumps.py::test_a_sample_that_fails_stays_where_it_was",
    ),
    Mutant(
        "path/jumps/stretched.py", "a sample that met its event goes on behind a jump",
        "stopped = stopped | (record.event >= 0)", "pass",
        "tests/path/jumps/test_jumps.py::test_an_event_at_the_time_of_a_jump_ends_the_solve_there",
    ),
    Mutant(
        "path/jumps/stretched.py", "a backward solve tells of its last stretch alone",
        "report = before.then(report)", "pass",
        "tests/path/jumps/test_jumps.py::test_a_backward_solve_tells_of_all_stretches",
    ),
    Mutant(
        "path/jumps/stretched.py", "a path that has been large has small roundings",
        "size = torch.maximum(transforms.unwrapped(began).detach().abs(), y.abs())", "size = y.abs()",
        "tests/path/jumps/test_jumps.py::test_a_path_that_has_been_large_is_at_zero_to_the_rounding_of_that",
    ),
    Mutant(
        "path/report.py", "a failure on the way is forgotten",
        "status=torch.where(failed, self.status, later.status)", "status=later.status",
        "tests/path/jumps/test_jumps.py::test_a_sample_that_fails_stays_where_it_was",
    ),
    Mutant(
        "path/dense/chain.py", "a jump belongs to the side behind it",
        "self.stops.T.contiguous(), at.detach().T.contiguous())",
        "self.stops.T.contiguous(), at.detach().T.contiguous(), right=True)",
        "tests/path/jumps/test_jumps.py::test_dense_output_is_right_on_both_sides",
    ),
]  # fmt: skip

"""Wrong lines: paths, events, drift."""

from tests.mutants.mutant import Mutant

MUTANTS = [
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
        "tests/ode/test_quarantine.py::test_a_sick_sample_stays_out_of_events_and_dense_output",
    ),
    Mutant(
        "ode/loop.py", "steps that are used up count as arrival",
        "self._stop(self.who.running, Status.MAX_STEPS)", "self._stop(self.who.running, Status.CONVERGED)",
        "tests/ode/test_odeint.py::test_a_limit_of_steps_is_a_status_with_the_path_so_far",
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
        "tests/ode/test_event.py::test_direction",
    ),
    Mutant(
        "ode/event.py", "a path that grazes its event has a derivative",
        "if not transforms.active() and bool((rate == 0).any()):", "if False:",
        "tests/ode/test_event.py::test_a_grazed_condition_has_no_gradient",
    ),
    Mutant(
        "ode/call.py", "coupled samples have arrived",
        "report.status = torch.where(found, int(Status.COUPLED), report.status)",
        "pass",
        "tests/ode/test_quarantine.py::test_coupled_samples_are_refused_or_reported_and_the_remedies_help",
    ),
    Mutant(
        "core/independence.py", "no sample moves another",
        "return torch.equal(function(moved)[1::2], values[1::2])",
        "return True",
        "tests/ode/test_quarantine.py::test_coupled_samples_are_refused_or_reported_and_the_remedies_help",
    ),
    Mutant(
        "ode/call.py", "features pass for samples",
        "if found is not None and scalars > 1:",
        "if False:",
        "tests/ode/test_quarantine.py::test_coupled_samples_are_refused_or_reported_and_the_remedies_help",
    ),
    Mutant(
        "ode/call.py", "a condition that is no number was not met",
        "unknown = ~who.fired & ~condition(who.t, who.y).isfinite()",
        "unknown = who.fired & False",
        "tests/ode/test_quarantine.py::test_a_condition_that_is_not_finite_stays_out_too",
    ),
    Mutant(
        "ode/call.py", "backward failures are not said",
        "react(report, self.on_failure)",
        "react(report, 'ignore')",
        "tests/ode/test_adjoints.py::test_backsolve_says_that_it_drifted",
    ),
    Mutant(
        "ode/quarantine.py", "equal rows tell whose they are",
        "moved = jolted(start)",
        "moved = start",
        "tests/ode/test_quarantine.py::test_a_shared_tensor_as_long_as_the_batch_keeps_its_gradient",
    ),
    Mutant(
        "ode/quarantine.py", "samples without a gradient are differentiated",
        "sick = sick if lost is None else sick | lost",
        "pass",
        "tests/ode/test_quarantine.py::test_a_blow_up_under_a_stiff_solver_leaves_second_derivatives_alone",
    ),
    Mutant(
        "ode/quarantine.py", "nobody is told of a leak",
        'warn_of_leak()\n    again',
        'pass\n    again',
        "tests/ode/test_quarantine.py::test_a_sick_sample_that_cannot_be_kept_apart_is_said",
    ),
    Mutant(
        "ode/crossing.py", "events are found to three digits",
        "eps = 2 * torch.finfo(low.dtype).eps",
        "eps = 1e-3",
        "tests/ode/test_event.py::test_a_ball_meets_the_ground",
    ),
    Mutant(
        "ode/event.py", "an event that has just been met fires again",
        "met = value.abs() <= ROUNDINGS * eps * (moved + self._sway(who, value))",
        "met = value.abs() < 0",
        "tests/ode/test_event.py::test_the_first_bounces_of_a_ball",
    ),
    Mutant(
        "ode/event.py", "an event is where a rounding of the path puts it, and not on its surface",
        "better = (move.abs() <= most) & (there.abs() < value.abs())",
        "better = there.isnan()",
        "tests/ode/test_bounces.py::test_a_chain_starts_on_its_surface_wherever_that_is",
    ),
    Mutant(
        "ode/event.py", "the probe of an event is of the horizon's size",
        "h = stop - who.t\n        ahead",
        "h = who.ts[-1] - who.t\n        ahead",
        "tests/ode/test_own_time.py::test_an_event_before_a_far_horizon",
    ),
    Mutant(
        "ode/replay.py", "a value is what was made again for its gradient",
        "return value + (graph - graph.detach())",
        "return graph",
        "tests/ode/test_bounces.py::test_no_value_depends_on_the_grad_mode_nor_on_the_adjoint",
    ),
    Mutant(
        "ode/span.py", "a rounding leads beyond the last time",
        "return torch.lerp(self.start, self.stop, part)",
        "return self.start + part * self.h",
        "tests/ode/test_span.py",
    ),
    Mutant(
        "ode/loop.py", "the smallest step is that of the horizon",
        "torch.add(self.who.least, self.who.t.abs(), alpha=4 * self.eps)",
        "torch.add(self.who.least, self.end.abs(), alpha=4 * self.eps)",
        "tests/ode/test_own_time.py::test_the_time_of_an_event_does_not_depend_on_the_horizon",
    ),
    Mutant(
        "ode/walk_back.py", "an unknown that is zero at an output has no size",
        "ratio(stored - y, stored, self.size)",
        "ratio(stored - y, stored, stored)",
        "tests/ode/test_adjoints.py::test_an_unknown_that_is_zero_at_an_output_has_not_drifted",
    ),
    Mutant(
        "ode/event.py", "the event's time has the derivative of one step",
        'for _ in range(2):\n        rate',
        'for _ in range(1):\n        rate',
        "tests/ode/test_event.py::test_second_derivative_of_the_time_of_fall",
    ),
    Mutant(
        "ode/event.py", "the event's time has no derivative",
        "later = later - (step - step.detach())",
        "pass",
        "tests/ode/test_event.py::test_gradients_are_exact_for_the_steps_taken",
    ),
    Mutant(
        "ode/loop.py", "a path goes on beyond its event",
        "who.y = torch.where(halt.fires.unsqueeze(1), halt.y, y)",
        "pass",
        "tests/ode/test_event.py::test_a_ball_meets_the_ground",
    ),
    Mutant(
        "ode/loop.py", "rejected steps are taken",
        "y = torch.where(moved, y, who.y)",
        "pass",
        "tests/ode/test_odeint.py::test_a_sample_does_not_see_its_mates",
    ),
    Mutant(
        "ode/dense.py", "a path goes on beyond where it stopped",
        "late = at > self._until",
        "late = at > torch.inf",
        "tests/ode/test_dense.py::test_a_sample_that_stopped_holds_its_state",
    ),
    Mutant(
        "ode/dense.py", "a path is asked for what it does not know",
        "if bool(outside.any()):",
        "if False:",
        "tests/ode/test_dense.py -k outside",
    ),
    Mutant(
        "ode/dense.py", "a stopped sample still moves",
        "rows = torch.where(late.unsqueeze(2), 0.0, rows)",
        "pass",
        "tests/ode/test_dense.py::test_a_sample_that_stopped_holds_its_state",
    ),
    Mutant(
        "ode/stage_newton.py", "stages need not be solved",
        "return w, failed | ~done, worst",
        "return w, torch.zeros_like(failed), worst",
        "tests/ode/test_stage_newton.py::test_a_stage_without_a_solution_has_failed_and_the_others_have_theirs",
    ),
    Mutant(
        "ode/reversible.py", "states that have parted have not drifted",
        "~(apart.amax(0) <= LIMIT)",
        "apart.amax(0).isnan()",
        "tests/ode/test_reversible.py",
    ),
    Mutant(
        "ode/stage_newton.py", "steps of stages that failed are taken",
        "torch.where(failed, self.y, end), torch.where(failed, large, error)", "end, error",
        "tests/ode/test_stage_newton.py::test_the_step_of_a_stage_that_failed_is_rejected_and_its_state_kept",
    ),
    Mutant(
        "ode/gate.py", "the backward pass has no quarantine",
        "elif not all_finite(found):", "elif False:",
        "tests/ode/test_gate.py::test_a_slope_by_a_parameter_that_is_infinite_is_found_by_halving",
    ),
    Mutant(
        "ode/gate.py", "samples without a gradient are not reported",
        "self._report(lost)", "pass",
        "tests/ode/test_gate.py::test_the_failure_is_raised_by_default_and_nothing_is_left_of_it",
    ),
    Mutant(
        "ode/gate.py", "stand-ins get the sick sample's cotangent",
        "grad = torch.where(sick.unsqueeze(1), 0, grad)", "pass",
        "tests/ode/test_gate.py",
    ),
]  # fmt: skip

import pickle
import re
import warnings

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.status import Report, Solution, failure_message, react
from torchimplicit.linear.report import LinearReport
from torchimplicit.solve.report import SolveReport

S = ti.Status


def report(*statuses, kind=SolveReport, **more):
    count = len(statuses)
    numbers = torch.arange(count, dtype=torch.float64)
    return kind(torch.tensor([int(s) for s in statuses]), torch.arange(count), 10.0**-numbers, 7, **more)


def test_a_report_has_converged_when_every_sample_has():
    assert report(S.CONVERGED, S.CONVERGED).converged
    assert not report(S.CONVERGED, S.STAGNATED).converged
    assert not report(S.MAX_STEPS).converged
    assert report(S.CONVERGED, S.STAGNATED, S.DIVERGED).failed.tolist() == [1, 2]


@pytest.mark.parametrize("status", [s for s in S if s is not S.CONVERGED])
def test_every_status_but_one_is_a_failure(status):
    bad = report(S.CONVERGED, status)
    assert bad.failed.tolist() == [1]
    with pytest.raises(ti.ConvergenceError):
        react(bad, "raise")


def test_failures_are_raised_warned_of_or_ignored_and_success_is_silent():
    bad, good = report(S.CONVERGED, S.DIVERGED), report(S.CONVERGED)
    solution = Solution(torch.zeros(2), bad)
    with pytest.raises(ti.ConvergenceError, match="1 of 2 samples did not converge") as caught:
        react(bad, "raise", solution)
    assert caught.value.report is bad
    assert caught.value.solution is solution
    with pytest.warns(ti.ConvergenceWarning, match="diverged: sample 1"):
        react(bad, "warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        react(bad, "ignore")
        for word in ("raise", "warn", "ignore"):
            react(good, word)


def test_a_status_is_told_also_where_nothing_is_known_to_try():
    assert failure_message(report(S.COUPLED, S.CONVERGED, kind=Report)).splitlines()[1:] == [
        "  coupled: sample 0 (step 0, residual 1.00e+00)."
    ]


def test_the_message_names_the_samples_their_residual_and_what_to_try():
    message = failure_message(report(S.CONVERGED, *[S.MAX_STEPS] * 7, S.NON_FINITE, advice="Look twice."))
    assert message.startswith("solve: 8 of 9 samples did not converge.")
    assert "max_steps: sample 1 (step 1, residual 1.00e-01), sample 2" in message
    assert re.search(r"sample 5 \(step 5, [^)]*\) and 2 more\.", message)
    assert "non_finite: sample 8" in message
    assert message.endswith("Look twice.")
    assert "converged:" not in message


def test_remedies_are_those_of_the_statuses_that_occurred_and_of_the_kind_of_solve():
    forward = report(S.CONVERGED, S.STAGNATED).remedies
    assert list(forward) == [S.STAGNATED]
    linear = report(S.STAGNATED, kind=LinearReport).remedies
    assert forward[S.STAGNATED] != linear[S.STAGNATED]


def test_one_line_says_how_many_converged():
    good = report(S.CONVERGED, S.CONVERGED, S.DIVERGED)
    assert str(good) == "solve: 2/3 converged, steps up to 2, residual up to 1.00e+00, 7 evaluations"
    good.backward = report(S.CONVERGED, kind=LinearReport, name="backward solve")
    assert str(good).endswith("; backward solve: 1/1 converged, steps up to 0, residual up to 1.00e+00, 7 products")


def test_a_solution_shows_what_its_report_says():
    bad = report(S.CONVERGED, S.DIVERGED, trace=torch.ones(3, 2))
    solution = Solution(torch.zeros(2), bad)
    assert solution.status is bad.status
    assert solution.steps is bad.steps
    assert solution.residual is bad.residual
    assert solution.trace is bad.trace
    assert solution.nfev == 7
    assert solution.backward is None


def test_an_error_travels_between_processes_without_the_solution():
    error = ti.ConvergenceError("words", report(S.DIVERGED), Solution(torch.zeros(1), report(S.DIVERGED)))
    other = pickle.loads(pickle.dumps(error))
    assert str(other) == "words"
    assert other.report.status.tolist() == [S.DIVERGED]
    assert other.solution is None
    assert isinstance(other, ti.ImplicitError)

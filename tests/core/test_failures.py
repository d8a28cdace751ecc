"""Failures are counted by whoever solves, and said at the first, the tenth, the hundredth."""

import copy
import pickle
import warnings

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.failures import RECENT, Count, Failures
from torchimplicit.core.status import Report, react


def report(failed, name="solve"):
    status = torch.full((1,), int(ti.Status.DIVERGED if failed else ti.Status.CONVERGED))
    return Report(status, status, status.double(), 1, name)


def warned(*reports, on_failure="warn"):
    """Which of these reports are warned of, as they come from one line."""
    said = []
    for i, each in enumerate(reports):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            react(each, on_failure)
        said += [i] * len(caught)
    return said


def test_the_first_tenth_and_hundredth_failure_are_spoken_of():
    failures = Failures()
    spoken = [failures.add("forward", True) for _ in range(1000)]
    assert [i + 1 for i, told in enumerate(spoken) if told] == [1, 10, 100, 1000]
    assert "The next warning comes by failure 100," in spoken[9]
    assert not any(Failures().add("forward", False) for _ in range(3))


def test_only_failures_count_and_the_share_is_of_the_last_solves():
    count = Count()
    for _ in range(RECENT):
        count.add(True)
    for _ in range(RECENT // 2):
        count.add(False)
    told = f"Failure {RECENT} of {RECENT * 3 // 2} forward solves; 50 % of the last {RECENT} failed."
    assert count.tell("forward") == told


def test_a_line_is_warned_of_ten_times_more_rarely_each_time():
    assert warned(*[report(True)] * 100) == [0, 9, 99]


def test_solves_that_converge_are_no_failures_of_a_line():
    assert warned(*[report(True), report(False)] * 10) == [0, 18]


def test_lines_are_counted_apart():
    with pytest.warns(ti.ConvergenceWarning):
        react(report(True), "warn")
    with pytest.warns(ti.ConvergenceWarning, match="Failure 1 of 1"):
        react(report(True), "warn")


def test_the_first_of_each_kind_is_told_then_those_of_both_and_layers_are_counted_apart():
    one, other = (Failures(owner=name).under("warn") for name in ("one", "other"))
    both = [report(True), report(True, "backward solve")]
    assert warned(*both * 10, on_failure=one) == [0, 1, 9]
    assert warned(*both, on_failure=other) == [0, 1]
    part = Failures("mine")
    later = part.backward_only()
    assert later.counts["backward"] is part.counts["backward"]
    assert later.counts["forward"] is not part.counts["forward"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda word: pickle.loads(pickle.dumps(word))])
def test_the_word_goes_with_who_counts(copied):
    word = Failures("mine", "Look twice.").under("warn")
    assert warned(report(True), on_failure=word) == [0]
    other = copied(word)
    assert other == "warn"
    assert other.failures.owner == "mine"
    assert warned(*[report(True)] * 9, on_failure=other) == [8], "a copy goes on counting"
    assert warned(*[report(True)] * 9, on_failure=word) == [8], "for itself"
    with pytest.raises(ti.ConvergenceError, match=r"in mine(?s:.)*Look twice"):
        react(report(True), Failures("mine", "Look twice.").under("raise"))

"""Impossible options are refused in one form of words."""

from dataclasses import dataclass

import pytest

import torchimplicit as ti
from torchimplicit.core.options import check_on_failure, require, require_count, require_instance
from torchimplicit.solve import Solver


@dataclass
class Options:
    window: object = 3
    period: object = 0


def test_what_was_got_and_what_was_expected():
    with pytest.raises(ValueError, match=r"^Options\(window=3\): expected an odd number above 3$"):
        require(Options(), "window", False, "an odd number above 3")


def test_counts_of_an_object_and_of_a_function():
    require_count(Options(), "window", "period", least=0)
    require_count("solve", steps=1, restarts=2)
    with pytest.raises(ValueError, match=r"^Options\(period=0\): expected an integer >= 1$"):
        require_count(Options(), "window", "period")
    with pytest.raises(ValueError, match=r"^solve\(steps=1\): expected an integer >= 2$"):
        require_count("solve", least=2, restarts=2, steps=1)


@pytest.mark.parametrize("value", [2.0, "2", None, True, -1])
def test_what_counts_nothing(value):
    with pytest.raises(ValueError, match="expected an integer >= 0"):
        require_count(Options(window=value), "window", least=0)


def test_an_instance_and_not_its_class():
    require_instance("solver", ti.Picard(), ti.Picard, "Anderson()")
    with pytest.raises(TypeError, match=r"^solver: got None, expected an instance of Solver; try Anderson\(\)$"):
        require_instance("solver", None, Solver, "Anderson()")
    with pytest.raises(TypeError, match=r"^solver: got <class .*, expected an instance of Solver; try Broyden\(\)$"):
        require_instance("solver", ti.Broyden, Solver, "Anderson()")


def test_words_for_failures():
    for word in ("raise", "warn", "ignore"):
        check_on_failure(word)
    check_on_failure("nan", "nan")
    with pytest.raises(ValueError, match=r"^on_failure: got 'nan', expected 'raise', 'warn' or 'ignore'$"):
        check_on_failure("nan")
    with pytest.raises(ValueError, match=r"^on_failure: got 'log', expected 'raise', 'warn', 'ignore' or 'nan'$"):
        check_on_failure("log", "nan")

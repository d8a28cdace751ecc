"""The table of mutants is true to the code: a line that has changed is changed there, too."""

import pytest

from tests.mutants.mutant import ROOT
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.why}")
def test_the_line_is_in_the_code_once_and_the_tests_exist(mutant):
    text = (ROOT / "src" / "torchimplicit" / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.old!r} must be in {mutant.file} once: a changed line is changed here"
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    places = [word.split("::") for word in mutant.tests.split() if word.startswith("tests/")]
    assert places
    for file, *names in places:
        content = (ROOT / file).read_text()
        assert all(f"def {name}(" in content for name in names), f"{file} has no {names}"


def test_every_mutant_is_there_once():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.why) for mutant in MUTANTS}) == len(MUTANTS)

"""The table of mutants is true to the code: a line that has changed is changed there, too."""

import pytest

from tests.mutants.mutant import ROOT
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.why}")
def test_the_line_is_in_the_code_once_and_the_tests_exist(mutant):
    text = (ROOT / "src" / "torchimplicit" / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new
    files = [word.split("::")[0] for word in mutant.tests.split() if word.startswith("tests/")]
    assert files
    assert all((ROOT / file).exists() for file in files)

"""For all tests: what one has warned of says nothing to the next."""

import pytest

from torchimplicit.core.failures import forget_lines


@pytest.fixture(autouse=True)
def _lines_that_have_not_failed():
    forget_lines()

"""For all tests: what one has warned of says nothing to the next, and how long an example takes is no fault."""

import pytest
from hypothesis import settings

from torchimplicit.core.failures import forget_lines

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _lines_that_have_not_failed():
    forget_lines()

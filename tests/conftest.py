"""For all tests: what one has warned of says nothing to the next, and how long an example takes is no fault."""

import pytest
import torch
from hypothesis import settings

from torchimplicit.core.failures import forget_lines

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


class Generator(torch.Generator):
    """Of the default device, which `torch.Generator()` does not follow."""

    def __new__(cls, device=None):
        return super().__new__(cls, device or torch.get_default_device())


def pytest_addoption(parser):
    parser.addoption("--device", help="where tests make their tensors: cuda, ...; `make gpu-check` asks for it")


def pytest_configure(config):
    if device := config.getoption("--device"):
        torch.set_default_device(device)
        torch.Generator = Generator


@pytest.fixture(autouse=True)
def _lines_that_have_not_failed():
    forget_lines()

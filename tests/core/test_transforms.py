"""What is kept apart from the outside of a solve."""

import pytest
import torch

from torchimplicit.core.transforms import random_state_kept


@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_drawn_inside_leave_no_trace(fails):
    state = torch.random.get_rng_state()
    try:
        with random_state_kept(torch.device("cpu")):
            torch.rand(3)
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert torch.equal(torch.random.get_rng_state(), state)

"""Times within a step: at its ends exactly, and never beyond them."""

import pytest
import torch

from torchimplicit.path.span import Span


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_times_are_within_the_ends_whatever_these_are(dtype, turned):
    generator = torch.Generator().manual_seed(0)
    start, stop = (10 * torch.randn(2, 5000, dtype=dtype, generator=generator)).sort(0).values.unbind()
    beyond = start + (stop - start)
    assert bool((beyond > stop).any())  # so the obvious way is not safe
    span = Span.of(start, stop).back() if turned else Span.of(start, stop)
    parts = torch.tensor([0.0, 1e-3, 0.161, 0.5, 0.98, 1 - 1e-7, 1.0], dtype=dtype)
    times = span.at(parts.unsqueeze(1))
    assert torch.equal(times[0], span.start)
    assert torch.equal(times[-1], span.stop)
    assert bool(((times >= start) & (times <= stop)).all())
    assert torch.allclose(times[3], (start + stop) / 2, atol=1e-5)
    assert torch.equal(span.at(1.0), span.stop)

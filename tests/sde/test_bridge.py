"""Parts of an interval, whole intervals from parts, and space-space areas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sde.law import check_normal, largest_correlation
from torchimplicit.sde import Brownian, Increment, bridge, joined, levy_area

D = torch.float64
SAMPLES = 40_000


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def column(*values):
    return torch.tensor(values, dtype=D)


@settings(max_examples=50, derandomize=True)
@given(s=st.floats(1e-9, 1e3), r=st.floats(1e-9, 1e3), area=st.booleans())
def test_the_parts_make_the_whole(s, r, area):
    x = normals(4, 6)
    whole = Increment(x[0], x[1] if area else None)
    first, rest = bridge(whole, column(s), column(r), x[2], x[3])
    again = joined(first, rest, s, r)
    assert torch.allclose(again.W, whole.W, rtol=0, atol=1e-13 * max(1.0, first.W.abs().max().item()))
    if area:
        assert torch.allclose(again.H, whole.H, rtol=0, atol=1e-12 * max(1.0, first.W.abs().max().item()))


@pytest.mark.parametrize("s", [0.5, 0.03, 0.9])
def test_the_parts_have_the_law_of_paths(s):
    x, r = normals(4, SAMPLES, seed=1), 1 - s
    for H in (x[1] / 12**0.5, None):
        first, rest = bridge(Increment(x[0], H), column(s), column(r), x[2], x[3])
        rows = [first.W / s**0.5, rest.W / r**0.5]
        rows += [] if H is None else [first.H / (s / 12) ** 0.5, rest.H / (r / 12) ** 0.5]
        for row in rows:
            check_normal(row)
        assert largest_correlation(torch.stack(rows)) < 4 / SAMPLES**0.5


def test_a_part_of_no_length():
    x = normals(4, 3)
    whole = Increment(x[0], x[1])
    for s, r, nothing, all_ in ((0.0, 2.0, 0, 1), (2.0, 0.0, 1, 0)):
        parts = bridge(whole, column(s), column(r), x[2], x[3])
        assert parts[nothing].W.abs().max() < 1e-15
        assert torch.equal(parts[all_].W, whole.W)
        assert torch.equal(parts[all_].H, whole.H)


@pytest.fixture(scope="module")
def fine():
    """W, H and the area A_01 of a path of 128 steps over [0, 1], (n, 2) and (n,)."""
    steps = normals(128, 30_000, 2, seed=3) / 128**0.5
    before = steps.cumsum(0) - steps
    middle = before + 0.5 * steps
    W, area = steps.sum(0), 0.5 * (middle[..., 0] * steps[..., 1] - middle[..., 1] * steps[..., 0]).sum(0)
    return Increment(W, middle.mean(0) - 0.5 * W), area


def test_areas_have_the_mean_and_variance_of_those_of_a_fine_path(fine):
    """The right constants are 1/20 and 1/5: a peer has 1/50, and areas of variance 0.22 in place of 1/4."""
    path, area = fine
    mean = levy_area(path, 1.0, torch.zeros(len(area), 1, dtype=D))[:, 0, 1]
    variance = (levy_area(path, 1.0, torch.ones(len(area), 1, dtype=D))[:, 0, 1] - mean) ** 2
    rest = area - mean
    squares = (path.H**2).sum(1)
    fit = torch.linalg.lstsq(torch.stack([torch.ones_like(squares), squares], 1), rest[:, None] ** 2).solution
    assert torch.allclose(fit[:, 0], column(0.05, 0.2), atol=0.012)
    assert torch.allclose(variance, 0.05 + 0.2 * squares)
    # 0.001 of the fine path's own area is missing, being inside its steps
    assert abs(area.var().item() - 0.25) < 0.01
    assert (rest * mean).mean().abs() < 4 * (rest * mean).std() / len(area) ** 0.5


def test_areas_of_steps():
    noise = Brownian(seed=6).bind(torch.empty(SAMPLES, 3, dtype=D), area=True)
    h = 0.3
    path = noise.increment(4, h)
    A = noise.levy_area(4, h, path)
    assert torch.equal(A, -A.mT)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(A[:, i, j].mean()) < 4 * h / 2 / SAMPLES**0.5
        assert abs(A[:, i, j].var() / (h**2 / 4) - 1) < 4 * math.sqrt(5 / SAMPLES)  # the fourth moment is 5 (h/2)^4
    others = [A[:, 0, 1], A[:, 0, 2], A[:, 1, 2], noise.levy_area(5, h, noise.increment(5, h))[:, 0, 1], *path.W.T]
    assert largest_correlation(torch.stack(others)) < 4 / SAMPLES**0.5
    some = noise.take(torch.tensor([7, 2]))
    assert torch.equal(some.levy_area(4, h, some.increment(4, h)), A[[7, 2]])
    each = noise.take(torch.tensor([7, 2])).levy_area(4, column(h, h), path.each(lambda rows: rows[[7, 2]]))
    assert torch.allclose(each, A[[7, 2]])


def test_one_channel_has_no_areas():
    noise = Brownian(seed=6).bind(torch.empty(3, 1, dtype=D), area=True)
    assert torch.equal(noise.levy_area(0, 0.1, noise.increment(0, 0.1)), torch.zeros(3, 1, 1, dtype=D))


def test_areas_of_other_levels_are_others():
    noise = Brownian(seed=6, base=0.2).bind(torch.empty(2, 2, dtype=D), area=True)
    rests = []
    for h in (0.2, 0.1):
        path = noise.increment(3, h)
        mean = levy_area(path, h, torch.zeros(2, 1, dtype=D))
        spread = levy_area(path, h, torch.ones(2, 1, dtype=D)) - mean
        rests.append(((noise.levy_area(3, h, path) - mean) / spread)[:, 0, 1])
    assert not torch.allclose(*rests)

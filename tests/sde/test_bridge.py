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
    noise = Brownian(seed=6).bind(torch.empty(SAMPLES, 3, dtype=D), levy=True)
    h = 0.3
    path = noise.increment(4, h)
    A = path.A
    assert torch.equal(A, -A.mT)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(A[:, i, j].mean()) < 4 * h / 2 / SAMPLES**0.5
        assert abs(A[:, i, j].var() / (h**2 / 4) - 1) < 4 * math.sqrt(5 / SAMPLES)  # the fourth moment is 5 (h/2)^4
    others = [A[:, 0, 1], A[:, 0, 2], A[:, 1, 2], noise.increment(5, h).A[:, 0, 1], *path.W.T, *path.H.T]
    assert largest_correlation(torch.stack(others)) < 4 / SAMPLES**0.5
    plain = Brownian(seed=6).bind(torch.empty(SAMPLES, 3, dtype=D), area=True).increment(4, h)
    assert torch.equal(path.W, plain.W)
    assert torch.equal(path.H, plain.H)
    some = noise.take(torch.tensor([7, 2]))
    assert torch.equal(some.increment(4, h).A, A[[7, 2]])
    assert torch.allclose(some.increment(4, column(h, h).flatten()).A, A[[7, 2]])
    assert all(
        map(torch.equal, some.increments(3, torch.full((4,), h, dtype=D)).split()[1], path.each(lambda x: x[[7, 2]]))
    )


def test_one_channel_has_no_areas():
    noise = Brownian(seed=6).bind(torch.empty(3, 1, dtype=D), levy=True)
    assert torch.equal(noise.increment(0, 0.1).A, torch.zeros(3, 1, 1, dtype=D))


@settings(max_examples=20)
@given(number=st.integers(0, 40), coarser=st.integers(0, 3), width=st.integers(1, 3))
def test_areas_of_longer_steps_are_those_of_their_parts(number, coarser, width):
    """Chen's relation, to rounding: so that a solve at longer steps sees the same path, and so its order."""
    noise = Brownian(seed=6, base=0.125).bind(torch.empty(2, width, dtype=D), levy=True)
    h = 0.125 * 2**coarser
    whole = noise.increment(number, 2 * h)
    parts = joined(noise.increment(2 * number, h), noise.increment(2 * number + 1, h), h, h)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_areas_of_many_parts_have_the_law_of_one():
    noise = Brownian(seed=6, base=1 / 16).bind(torch.empty(SAMPLES, 2, dtype=D), levy=True)
    path = noise.increment(0, 1.0)
    A = path.A[:, 0, 1]
    assert abs(A.mean()) < 4 * 0.5 / SAMPLES**0.5
    assert abs(A.var() / 0.25 - 1) < 4 * math.sqrt(5 / SAMPLES)
    rest = A - (path.H[:, 0] * path.W[:, 1] - path.H[:, 1] * path.W[:, 0])  # its mean, W and H given
    assert largest_correlation(torch.stack([rest, A - rest, *path.W.T])) < 4 / SAMPLES**0.5
    squares = (path.H**2).sum(1)
    fit = torch.linalg.lstsq(torch.stack([torch.ones_like(squares), squares], 1), rest[:, None] ** 2).solution
    assert torch.allclose(fit[:, 0], column(0.05, 0.2).flatten(), atol=0.012)


def test_areas_of_parts_are_not_known():
    noise = Brownian(seed=6, base=0.2).bind(torch.empty(2, 2, dtype=D), levy=True)
    with pytest.raises(ValueError, match=r"step of length 0.1 with Levy areas.*try the smallest step as the base"):
        noise.increment(0, 0.1)
    assert Brownian(seed=6, base=0.1).bind(torch.empty(2, 2, dtype=D), levy=True).increment(0, 0.1).A is not None

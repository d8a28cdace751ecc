"""Brownian paths by the number of a step: of which sample they are, and of nothing else."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sde.law import check_normal, largest_correlation
from torchimplicit.sde import Brownian, joined

D = torch.float64
quick = settings(max_examples=25, derandomize=True)
widths, batches, numbers = st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**40)


def like(*shape, dtype=D):
    return torch.empty(shape, dtype=dtype)


def same(a, b):
    return torch.equal(a.W, b.W) and (a.H is b.H is None or torch.equal(a.H, b.H))


@quick
@given(
    width=widths, batch=batches, number=numbers, base=st.sampled_from([None, 0.5]), level=st.integers(-2, 5),
    single=st.booleans(), data=st.data(),
)  # fmt: skip
def test_a_sample_is_the_same_in_any_batch(width, batch, number, base, level, single, data):
    dtype = torch.float32 if single else D
    h = 0.5 / 2**level
    noise = Brownian(seed=11, base=base).bind(like(batch, width, dtype=dtype), area=True)
    whole = noise.increment(number, h)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4)))
    some = Brownian(seed=noise.seeds[chosen], base=base).bind(like(len(chosen), width, dtype=dtype), area=True)
    assert same(some.increment(number, h), whole.each(lambda rows: rows[chosen]))
    assert same(noise.take(chosen).increment(number, h), whole.each(lambda rows: rows[chosen]))
    larger = Brownian(seed=11, base=base).bind(like(batch + 3, width, dtype=dtype), area=True)
    assert same(larger.increment(number, h).each(lambda rows: rows[:batch]), whole)


@quick
@given(first=st.integers(0, 9), count=st.integers(1, 9), area=st.booleans(), width=widths)
def test_steps_made_at_once_are_those_made_one_by_one(first, count, area, width):
    noise = Brownian(seed=5).bind(like(3, width), area=area)
    h = torch.linspace(0.1, 0.5, count, dtype=D)
    for number in (first, first + count, 2 * first):
        made = noise.increments(number, h).split()
        assert all(same(each, noise.increment(number + k, h[k])) for k, each in enumerate(made))
    assert len(made) == count


@quick
@given(width=widths, order=st.permutations(range(12)), first=numbers, base=st.sampled_from([None, 0.25]))
def test_a_step_is_the_same_whenever_it_is_asked_for(width, order, first, base):
    def new():
        return Brownian(seed=5, base=base).bind(like(3, width), area=True)

    noise = new()
    forward = [noise.increment(first + k, 0.25) for k in range(12)]
    for k in order:
        assert same(noise.increment(first + k, 0.25), forward[k])
    assert same(new().increment(first + order[0], 0.25), forward[order[0]])


def test_large_batches_are_made_in_pieces_that_nobody_notices():
    large, small = (Brownian(seed=2).bind(like(batch, 7, dtype=torch.float32)) for batch in (12_001, 3))
    for number in (0, 1, 6):
        assert torch.equal(large.increment(number, 0.1).W[:3], small.increment(number, 0.1).W)
    rows = Brownian(seed=large.seeds[[-1]]).bind(like(1, 7, dtype=torch.float32))
    assert torch.equal(large.increment(3, 0.1).W[-1:], rows.increment(3, 0.1).W)
    wide = Brownian(seed=2).bind(like(2, 70_000, dtype=torch.float32)).increment(4, 0.1).W
    assert torch.equal(wide[:, :7], small.increment(4, 0.1).W[:2])


def test_threads_change_nothing():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(Brownian(seed=2).bind(like(9001, 9)).increment(5, 0.1).W)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_the_path_is_the_same_with_and_without_its_area():
    with_area, without = (Brownian(seed=3).bind(like(4, 2), area=area).increment(7, 0.1) for area in (True, False))
    assert without.H is None
    assert torch.equal(with_area.W, without.W)


def test_single_precision_sees_the_path_of_double_precision():
    single, double = (Brownian(seed=3).bind(like(400, 5, dtype=dtype), levy=True) for dtype in (torch.float32, D))
    for a, b in zip(single.increment(3, 0.1), double.increment(3, 0.1), strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-6)


@quick
@given(number=st.integers(0, 1000), level=st.integers(-3, 4), finer=st.integers(1, 5), width=st.integers(1, 4))
def test_a_finer_path_is_the_same_path(number, level, finer, width):
    """Steps add up, and Chen's relation holds for their areas."""
    noise = Brownian(seed=8, base=0.3).bind(like(2, width), area=True)
    h, count = 0.3 / 2**level, 2**finer
    whole, fine = noise.increment(number, h), h / count
    total = noise.increment(number * count, fine)
    for k in range(1, count):
        total = joined(total, noise.increment(number * count + k, fine), k * fine, fine)
    assert torch.allclose(total.W, whole.W, rtol=0, atol=1e-14)
    assert torch.allclose(total.H, whole.H, rtol=0, atol=1e-14)


@pytest.mark.parametrize("level", [3, -2])
def test_a_finer_path_has_the_law_of_paths(level):
    h = 0.3 / 2**level
    noise = Brownian(seed=8, base=0.3).bind(like(20_000, 1), area=True)
    steps = [noise.increment(number, h) for number in range(3, 9)]
    rows = torch.cat([torch.cat([step.W / h**0.5, step.H / (h / 12) ** 0.5], 1) for step in steps], 1).T
    for row in rows[:4]:
        check_normal(row)
    assert largest_correlation(rows) < 4 / 20_000**0.5


def test_a_base_is_the_path_of_steps_of_its_length():
    steps, base = (Brownian(seed=1, base=base).bind(like(3, 2), area=True) for base in (None, 0.2))
    assert same(steps.increment(5, 0.2), base.increment(5, 0.2))
    assert not torch.equal(steps.increment(5, 0.1).W, base.increment(5, 0.1).W)


def test_lengths_of_every_sample_and_their_gradients():
    noise = Brownian(seed=1).bind(like(3, 2), area=True)
    h = torch.tensor([0.1, 0.2, 0.4], dtype=D, requires_grad=True)
    path = noise.increment(4, h)
    for i in range(3):
        alone = noise.increment(4, h[i].item()).each(lambda rows, i=i: rows[i])
        assert torch.allclose(path.W[i], alone.W, rtol=1e-14)
        assert torch.allclose(path.H[i], alone.H, rtol=1e-14)
    (slope,) = torch.autograd.grad(path.W.sum() + path.H.sum(), h)
    assert torch.allclose(slope, (path.W + path.H).sum(1).detach() / (2 * h.detach()))


def test_an_increment_is_the_caller_s():
    for base in (None, 0.1):
        noise = Brownian(seed=1, base=base).bind(like(3, 2))
        first = noise.increment(0, 0.1).W
        kept = first.clone()
        for number in range(1, 200):
            noise.increment(number, 0.1)
        assert torch.equal(first, kept)


def test_any_shape_of_channels():
    state = {"a": like(2, 3, 4), "b": (torch.empty(2, dtype=torch.float32), torch.empty(2, 2, dtype=torch.complex128))}
    noise = Brownian(seed=4).bind(state)
    W = noise.increment(0, 1.0).W
    shaped = noise.shaped(W)
    assert W.shape == (2, 12 + 1 + 4)
    assert torch.equal(shaped["a"].flatten(1), W[:, :12])
    assert torch.equal(shaped["b"][0], W[:, 12].float())
    assert torch.equal(torch.view_as_real(shaped["b"][1]).flatten(1), W[:, 13:])
    half = Brownian(seed=4).bind(torch.empty(2, 3, dtype=torch.bfloat16))
    assert half.increment(0, 1.0).W.dtype == torch.float32
    assert half.shaped(half.increment(0, 1.0).W).dtype == torch.bfloat16


def test_the_format_of_images_changes_no_path():
    plain = torch.empty(2, 3, 4, 5)
    noise = [Brownian(seed=4).bind(images) for images in (plain, plain.to(memory_format=torch.channels_last))]
    a, b = (each.shaped(each.increment(2, 0.1).W) for each in noise)
    assert torch.equal(a, b)


def test_copies_and_pickles():
    source = Brownian(seed=torch.tensor([1, 5]), base=0.1)
    noise = source.bind(like(2, 3))
    expected = noise.increment(9, 0.05)
    for again in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert same(again.bind(like(2, 3)).increment(9, 0.05), expected)
    assert same(copy.deepcopy(noise).increment(9, 0.05), expected)
    assert same(noise.source.bind(like(2, 3)).increment(9, 0.05), expected)


@pytest.mark.parametrize("h", [0.0, -0.1, float("nan"), float("inf")])
def test_no_length(h):
    with pytest.raises(ValueError, match=r"got a step of length .*expected a number > 0"):
        Brownian(seed=1).bind(like(1, 1)).increment(0, h)
    with pytest.raises(ValueError, match=r"expected base=0\.1 times a power of two"):
        Brownian(seed=1, base=0.1).bind(like(1, 1)).increment(0, h)


def test_a_length_that_is_no_level_and_what_helps():
    with pytest.raises(ValueError, match=r"got a step of length 0\.03, expected base=0\.1 times a power of two"):
        Brownian(seed=1, base=0.1).bind(like(1, 1)).increment(0, 0.03)
    with pytest.raises(ValueError, match="as a number"):
        Brownian(seed=1, base=0.1).bind(like(1, 1)).increment(0, torch.tensor(0.1))
    Brownian(seed=1, base=0.1).bind(like(1, 1)).increment(0, 0.025)
    Brownian(seed=1).bind(like(1, 1)).increment(0, 0.03)


@pytest.mark.parametrize("base", [0.0, -1.0, float("inf"), float("nan"), "fine"])
def test_no_base(base):
    with pytest.raises(ValueError, match=r"Brownian\(base=.*expected None or a length of steps > 0"):
        Brownian(base=base)


def test_threads_make_their_noise_apart():
    def paths(seed):
        shape = (3 + seed, 2 + seed % 3)
        noise = Brownian(seed=seed).bind(like(*shape, dtype=(D, torch.float32)[seed % 2]))
        return [noise.increments(0, torch.full((1 + 2 * k,), 0.1, dtype=noise.dtype)).W for k in range(20)]

    alone = [paths(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(paths, range(8)))
    assert all(
        torch.equal(a, b) for one, other in zip(alone, together, strict=True) for a, b in zip(one, other, strict=True)
    )

"""Normals by counting: the integers are splitmix64's, the law is the normal one, and compiled kernels make the same."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.sde.law import check_normal, largest_correlation
from torchimplicit.sde import Brownian, normals

D = torch.float64
SAMPLES = 20_000


def test_the_integers_are_those_of_splitmix64():
    """The reference's first outputs for the states 0 and 1234567."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [normals.hashed(k * normals.GOLDEN) % 2**64 for k in range(3)] == expected
    assert normals.hashed(1234567) % 2**64 == 6457827717110365317
    words = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 1234567])
    assert normals.hash_of(words).tolist() == [normals.hashed(word) for word in words.tolist()]
    numbers = [0, 1, 7, 2**40]
    expected = [normals.hashed(normals.hashed(3) + number * normals.GOLDEN) for number in numbers]
    assert normals.places(3, torch.tensor(numbers)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_the_most_extreme_words_give_finite_normals(dtype):
    """A uniform number of 0 would be an infinite normal; in single precision rounding may make one."""
    high = torch.tensor([0, -1, 1, -2, 2**31 - 1, -(2**31)])
    low = torch.tensor([0, 1, 2**31, 2**32 - 1])
    words = (high[:, None] * 2**32 + low).flatten()
    room = normals.Room.of(words.shape, dtype, words.device)
    a, b = normals.box_muller(room._replace(words=words))
    radius = (a**2 + b**2).sqrt().view(6, 4)
    assert radius.isfinite().all()
    assert torch.allclose(radius[:2], torch.full((2, 4), 6.6604, dtype=dtype), atol=1e-4)  # sqrt(-2 log 2^-32)
    assert (radius[-2:] < 1e-4).all()


@pytest.fixture(scope="module")
def drawn():
    """Standard normals of 8 steps, 20,000 samples and 4 channels: the path's and the area's."""
    noise = Brownian(seed=12345).bind(torch.empty(SAMPLES, 4, dtype=D), area=True)
    steps = [noise.increment(number, 1.0) for number in range(8)]
    return torch.stack([step.W for step in steps]), torch.stack([step.H for step in steps]) * 12**0.5


def test_the_law_is_normal(drawn):
    for z in drawn:
        check_normal(z.flatten())


def test_nothing_is_correlated(drawn):
    """Steps, channels, paths and areas, nor their squares: what is made of one word is as independent as the rest."""
    rows = torch.cat([z.transpose(1, 2).reshape(-1, SAMPLES) for z in drawn])
    assert largest_correlation(rows) < 4.6 / SAMPLES**0.5  # 2,016 pairs
    assert largest_correlation(rows**2) < 4.6 / SAMPLES**0.5
    samples = torch.cat([z.transpose(0, 1).reshape(SAMPLES, -1) for z in drawn], 1)[:300]
    assert largest_correlation(samples) < 5 / 64**0.5  # 44,850 pairs of 64 numbers each


def test_neighbouring_seeds_are_not_correlated():
    noise = Brownian(seed=torch.arange(64)).bind(torch.empty(64, 2000, dtype=D))
    z = noise.increment(0, 1.0).W
    check_normal(z.flatten())
    assert largest_correlation(z) < 4.6 / 2000**0.5


def test_kernels_get_words_and_make_the_same_normals_for_every_step():
    """As a compiled chunk gets them: one graph, whatever the number of the step. The words are the eager ones."""
    noise = Brownian(seed=3).bind(torch.empty(5, 3, dtype=D), area=True)
    counter = CompileCounter()
    kernel = torch.compile(normals.normals_of_steps, fullgraph=True, backend=counter)
    for first in (0, 4, 2**33):
        for area, factor in ((False, 1.0), (True, 12**-0.5)):
            z = kernel(noise.seeds, noise.words(first, 4, area), noise.channels, D)
            for k in range(4):
                path = noise.increment(first + k, 1.0)
                expected = path.H if area else path.W
                assert torch.allclose(z[k] * factor, expected, rtol=1e-14, atol=0)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler, which torch.compile needs")
def test_machine_code_agrees():
    noise = Brownian(seed=3).bind(torch.empty(5, 3, dtype=D))
    kernel = torch.compile(normals.normals_of_steps, fullgraph=True)
    z = kernel(noise.seeds, noise.words(6, 2), noise.channels, D)
    expected = torch.stack([noise.increment(6, 1.0).W, noise.increment(7, 1.0).W])
    assert torch.allclose(z, expected, rtol=1e-12, atol=1e-14)
    torch._dynamo.reset()


def test_words_are_for_two_steps():
    noise = Brownian(seed=3).bind(torch.empty(5, 3))
    for first, count in ((1, 2), (0, 3)):
        with pytest.raises(ValueError, match="expected even numbers, a word being for two steps"):
            noise.words(first, count)
    with pytest.raises(ValueError, match=r"base=0\.1, expected .*no base; try increment"):
        Brownian(seed=3, base=0.1).bind(torch.empty(5, 3)).words(0, 2)

"""Samples are independent, or seen not to be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimplicit.core.independence import alternate, coupled, halves, jolted, leakage, mixes, noise, unmoved_by_others

EPS = torch.finfo(torch.float64).eps
CPU = torch.device("cpu")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def giving(batch, giver, taker, size=1.0):
    """The identity on `(batch, n)`, but for one sample that gets something of another."""

    def function(z):
        given = torch.zeros_like(z)
        given[taker] = size * z[giver]
        return z + given

    return function


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 33])
def test_every_ordered_pair_of_samples_is_parted_by_some_experiment(batch):
    parted = torch.eye(batch, dtype=torch.bool)
    count = 0
    for changed in halves(batch, CPU):
        parted |= changed.unsqueeze(1) & ~changed
        count += 1
    assert parted.all()
    assert count == 2 * (batch - 1).bit_length()
    assert len(list(halves(batch, CPU, bits=2))) == min(4, count)


@settings(max_examples=30, derandomize=True)
@given(st.integers(2, 9), st.data())
def test_one_sample_that_gets_something_of_another_is_found_and_no_other(batch, data):
    giver = data.draw(st.integers(0, batch - 1))
    taker = data.draw(st.integers(0, batch - 1).filter(lambda i: i != giver))
    z, expected = rand(batch, 3), (torch.arange(batch) == taker).tolist()
    function = giving(batch, giver, taker, 0.25)
    assert coupled(function, z, EPS, halves(batch, CPU)).tolist() == expected
    assert mixes(function, z).tolist() == expected
    leaked = leakage(function, z)
    assert torch.allclose(leaked[taker], 0.25 * z[giver].norm())
    assert (leaked[torch.arange(batch) != taker] == 0).all()


def test_independent_samples_leak_exactly_nothing_and_are_not_called_coupled():
    z, weight = rand(6, 4), rand(4, 4, seed=1)
    assert (leakage(lambda v: v @ weight, z) == 0).all()
    assert not mixes(lambda v: v @ weight, z).any()
    assert coupled(lambda z: torch.tanh(z @ weight), z, EPS, halves(6, CPU)) is None
    assert torch.equal(coupled(lambda z: z + z.mean(0), z, EPS, [alternate(z)]), ~alternate(z))
    assert coupled(lambda z: z + z.mean(0), z, EPS, []) is None


@pytest.mark.parametrize(("roundings", "found"), [(10, False), (1e6, True)])
def test_what_rounding_does_is_no_coupling(roundings, found):
    z = torch.ones(4, 3, dtype=torch.float64)
    function = giving(4, 1, 2, roundings * EPS)
    assert (coupled(function, z, EPS, halves(4, CPU)) is not None) == found
    assert bool(mixes(function, z).any()) == found


def test_what_is_random_is_not_called_coupled():
    torch.manual_seed(0)
    assert coupled(lambda z: z + torch.rand_like(z), rand(4, 3), EPS, halves(4, CPU)) is None


def test_a_sample_that_is_not_finite_is_not_called_coupled():
    z = rand(4, 3)
    z[2] = torch.nan
    assert coupled(lambda z: 2 * z, z, EPS, halves(4, CPU)) is None
    assert coupled(giving(4, 0, 3), z, EPS, halves(4, CPU)).tolist() == [False, False, False, True]


@pytest.mark.parametrize("size", [0.0, 1e-300, 1.0, 1e300])
def test_everything_is_moved_by_about_its_size_and_no_random_number_is_drawn(size):
    state = torch.random.get_rng_state()
    tensor = torch.full((4, 3), size, dtype=torch.float64)
    moves = (jolted(tensor) - tensor).abs()
    same = torch.randn(4, 3, dtype=tensor.dtype, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(tensor), same)
    assert torch.equal(torch.random.get_rng_state(), state)
    unit = size or 1.0
    assert (moves > 1e-3 * unit).all()
    assert (moves < 5 * unit).all()


def test_what_the_others_are_moves_no_row():
    tensor = 10.0 ** torch.tensor([[-200.0], [0.0], [100.0]], dtype=torch.float64) * rand(3, 4)
    others = torch.cat((tensor[:2], -(10.0**50) * tensor[2:]))
    assert torch.equal(jolted(tensor)[:2], jolted(others)[:2])
    moves = (jolted(tensor) - tensor).abs().amax(1) / tensor.abs().amax(1)
    assert ((moves > 0.1) & (moves < 5)).all()
    zero = torch.cat((tensor[:1], torch.zeros(1, 4, dtype=torch.float64)))
    assert (jolted(zero)[1].abs() < 1e-190).all()


def test_what_moves_with_others_shows_in_one_evaluation():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(7, 3, dtype=torch.float64, generator=generator)

    def alone(z):
        return torch.tanh(z) * z.sum(1, keepdim=True)

    def centred(z):
        return z - z.mean(0)

    assert unmoved_by_others(alone, z, alone(z))
    assert not unmoved_by_others(centred, z, centred(z))
    assert unmoved_by_others(alone, torch.zeros_like(z), alone(torch.zeros_like(z)))
    assert not unmoved_by_others(centred, torch.zeros_like(z), centred(torch.zeros_like(z)))


@pytest.mark.parametrize("shape", [(5, 3, 7), (2**16 + 1, 1)])  # kept for the next who asks, and not
def test_noise_is_always_the_same_and_leaves_the_global_random_state(shape):
    like, state = torch.empty(shape), torch.random.get_rng_state()
    first = noise(like)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    again = noise(like)
    assert torch.equal(again, first)
    again.zero_()
    assert torch.equal(noise(like), first)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000), batch=st.integers(1, 6), width=st.integers(1, 4),
    row=st.sampled_from([1.0, 0.0, torch.inf, torch.nan]),
)  # fmt: skip
def test_a_jolt_is_the_same_whether_the_host_looks_or_not(seed, batch, width, row):
    """Rows of zeros, and such as are not finite, take the longer way; those with a size the shorter one."""
    z = rand(batch, width, seed=seed)
    z[:1] = row
    by = noise(z)
    with torch.inference_mode():  # where nobody looks
        expected = jolted(z, 0.1, by)
    assert torch.equal(jolted(z, 0.1, by).nan_to_num(7.0), expected.nan_to_num(7.0))

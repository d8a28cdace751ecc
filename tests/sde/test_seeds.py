"""Seeds: drawn and reported, one for all, one a sample, of processes; and what is no seed."""

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from torchimplicit.sde import Brownian, Tree

LIKE = torch.empty(4, 2)


def first(**options):
    return Brownian(**options).bind(LIKE).increment(0, 1.0).W


def test_without_a_seed_torch_s_generator_says_which():
    torch.manual_seed(0)
    a, b = Brownian().bind(LIKE), Brownian().bind(LIKE)
    assert a.seed != b.seed
    torch.manual_seed(0)
    assert Brownian().bind(LIKE).seed == a.seed
    assert torch.equal(first(seed=a.seed), a.increment(0, 1.0).W)
    assert torch.equal(first(seed=a.seeds), a.increment(0, 1.0).W)


def test_a_seed_that_is_given_draws_nothing():
    before = torch.get_rng_state()
    first(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_any_integer_is_a_seed():
    paths = [first(seed=seed) for seed in (0, 1, -1, 2**63, 2**64 - 2, torch.tensor([0, 1, 2, 3], dtype=torch.int32))]
    assert torch.stack(paths).unique(dim=0).shape[0] == len(paths)
    assert torch.equal(first(seed=torch.arange(4)), first(seed=torch.arange(4, dtype=torch.uint8)))


def test_neighbouring_seeds_share_no_path():
    """Sample 1 of seed 0 is not sample 0 of seed 1."""
    paths = torch.cat(
        [first(seed=seed) for seed in range(50)] + [first(seed=torch.arange(4) + 4 * k) for k in range(9)]
    )
    assert paths.unique(dim=0).shape == paths.shape


def test_equal_seeds_are_equal_paths():
    path = first(seed=torch.tensor([5, 6, 5, 7]))
    assert torch.equal(path[0], path[2])
    assert not torch.equal(path[0], path[1])


@pytest.fixture
def process(request):
    """A process of a group of three that is not there."""

    def enter(rank):
        distributed.init_process_group("fake", rank=rank, world_size=3, store=FakeStore())

    yield enter
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_processes_that_are_seeded_alike_differ(process):
    seeds = []
    for rank in range(3):
        process(rank)
        torch.manual_seed(0)
        noise = Brownian().bind(LIKE)
        seeds.append(noise.seed)
        distributed.destroy_process_group()
        assert torch.equal(first(seed=noise.seed), noise.increment(0, 1.0).W)  # what one drew is repeated anywhere
    assert len({*seeds}) == 3
    torch.manual_seed(0)
    assert Brownian().bind(LIKE).seed == seeds[0]
    process(1)
    assert Brownian(seed=3).bind(LIKE).seed == 3


@pytest.mark.parametrize("source", [Brownian, Tree])
class TestBadInput:
    def test_another_number_of_seeds(self, source):
        with pytest.raises(ValueError, match=r"\(seed\): got 3 seeds for a batch of 4, expected one each; try one int"):
            source(seed=torch.arange(3)).bind(LIKE)
        source(seed=3).bind(LIKE)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
    def test_seeds_that_are_not_integers(self, source, dtype):
        with pytest.raises(TypeError, match=rf"got a tensor of {dtype}, expected None, an int, or .*try seed\.long"):
            source(seed=torch.zeros(4, dtype=dtype))
        source(seed=torch.zeros(4, dtype=dtype).real.long()).bind(LIKE)

    @pytest.mark.parametrize("shape", [(), (4, 1)])
    def test_seeds_of_another_shape(self, source, shape):
        with pytest.raises(
            ValueError, match=r"got a tensor of shape \(.*\), expected None, an int, or a tensor \(B,\)"
        ):
            source(seed=torch.zeros(shape, dtype=torch.int64))

    @pytest.mark.parametrize("seed", [0.5, "a", True, [1, 2], (3,)])
    def test_what_is_no_seed(self, source, seed):
        with pytest.raises(TypeError, match=r"\(seed\): got .*expected None, an int, or a tensor \(B,\) of int64"):
            source(seed=seed)

    def test_what_is_no_state(self, source):
        with pytest.raises(TypeError, match=r"int64, expected a floating"):
            source(seed=1).bind(torch.zeros(2, 3, dtype=torch.int64))

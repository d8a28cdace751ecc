"""Masks: as many as asked for, for every acceleration; seeds; what is equispaced, apart, radial."""

import pytest
import torch

import torchimplicit as ti

im = ti.imaging


@pytest.mark.parametrize("kind", ["random", "equispaced"])
@pytest.mark.parametrize("size", [12, 63, 218, 320])
def test_lines_got_are_lines_asked(size, kind):
    for acceleration in (1, 1.5, 2, 3.7, 4, 8, 16):
        for part in (0, 0.3, 0.99):
            mask = im.cartesian(size, acceleration, part / acceleration, kind, seed=range(4))
            assert mask.shape == (4, 1, size)
            assert ((mask.sum((1, 2)) - size / acceleration).abs() <= 0.5).all() or size < acceleration
            centre = round(part / acceleration * size)
            first = size // 2 - centre // 2
            assert mask[:, 0, first : first + centre].all()
            assert centre == 0 or bool(mask[:, 0, size // 2].all()), "the zero frequency is sampled"


def test_equispaced_is_equispaced():
    for acceleration in (2, 3, 4.5, 8):
        mask = im.cartesian(320, acceleration, 0.0, "equispaced", seed=3)[0]
        gaps = mask.nonzero().squeeze(1).diff()
        assert gaps.max() - gaps.min() <= 1
        whole = float(acceleration).is_integer() and 320 % acceleration == 0
        assert not whole or gaps.unique().tolist() == [acceleration]
    mask = im.cartesian(320, 4, 0.08, "equispaced", seed=3)[0]
    first = 160 - 26 // 2
    outside = torch.cat([mask[:first], mask[first + 26 :]]).nonzero().squeeze(1).diff()
    assert outside.max() - outside.min() <= 1


def test_random_is_random():
    """Every line outside of the centre is as likely as another."""
    mask = im.cartesian(40, 4, 0.1, seed=range(2000))[:, 0].double()
    often = torch.cat([mask[:, :18], mask[:, 22:]], 1).mean(0)
    assert (often - 6 / 36).abs().max() < 4.5 * (6 / 36 * 30 / 36 / 2000) ** 0.5


MAKERS = {
    "random": lambda seed: im.cartesian(24, 3, seed=seed),
    "equispaced": lambda seed: im.cartesian(24, 3, kind="equispaced", seed=seed),
    "poisson": lambda seed: im.poisson_disc((12, 16), 3, seed=seed),
    "radial": lambda seed: im.radial((12, 16), 3, seed=seed),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_seeds(make):
    state = torch.get_rng_state()
    masks = make([7, 3, 7])
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], make(3))
    assert torch.equal(masks, make(torch.tensor([7, 3, 7])))
    assert len({tuple(mask.flatten().tolist()) for mask in make(range(12))}) > 4
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"seed: got -1, expected an integer >= 0"):
        make(-1)
    with pytest.raises(ValueError, match=r"seed: got 1.5, expected"):
        make(1.5)


def test_points_keep_their_distance():
    for acceleration in (2, 4, 7.3, 12):
        mask = im.poisson_disc((40, 32), acceleration, 0.02, seed=1)
        assert int(mask.sum()) == round(40 * 32 / acceleration)
        assert mask[18:22, 14:18].all(), "the centre is sampled"
    mask = im.poisson_disc((48, 48), 6, 0.0, spread=1.0)
    points = mask.nonzero().double()
    apart = torch.pdist(points).min()
    assert apart >= 2, "a sixth at random would touch"
    mask = im.poisson_disc((48, 48), 6, 0.0, spread=4.0)
    assert mask[18:30, 18:30].double().mean() > 2 * mask[:12, :12].double().mean()


def test_spokes():
    for acceleration in (1, 1.3, 2, 4, 8, 16):
        for seed in range(5):
            mask = im.radial((48, 36), acceleration, seed)
            assert abs(int(mask.sum()) - 48 * 36 / acceleration) <= (48**2 + 36**2) ** 0.5 / 2 + 1
            assert mask[24, 18]
    one = im.radial((33, 33), 33, seed=2)
    rows, columns = one.nonzero().double().unbind(1)
    assert torch.linalg.matrix_rank(torch.stack([rows - 16, columns - 16]), atol=5.0) == 1, "one spoke is a line"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: im.cartesian(64, 4, 0.25), r"center_fraction=0.25\): expected a number in \[0, 0.25\), less than all"),
        (lambda: im.cartesian(64, 4, 0.9), r"center_fraction=0.9\).*try 0.08"),
        (lambda: im.cartesian(64, 4, -0.1), r"center_fraction=-0.1\)"),
        (lambda: im.cartesian(64, 4, float("nan")), r"center_fraction=nan\)"),
        (lambda: im.cartesian(64, 0.5), r"cartesian\(acceleration=0.5\): expected a number >= 1"),
        (lambda: im.cartesian(0, 2), r"cartesian\(size=0\)"),
        (lambda: im.cartesian(8, 2, kind="uniform"), r"cartesian\(kind='uniform'\): expected 'random' or 'equispaced'"),
        (lambda: im.poisson_disc((8, 8), 4, 0.25), r"poisson_disc\(center_fraction=0.25\)"),
        (lambda: im.poisson_disc((8, 8), 4, spread=0.5), r"poisson_disc\(spread=0.5\): expected a number >= 1"),
        (lambda: im.poisson_disc(8, 4), r"poisson_disc\(shape=8\): expected \(H, W\)"),
        (lambda: im.radial((8, 8), 40), r"radial\(acceleration=40\): expected no more than 16, for one spoke"),
        (lambda: im.radial((8, 8, 8), 4), r"radial\(shape=\(8, 8, 8\)\): expected \(H, W\)"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()

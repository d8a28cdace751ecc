"""Brownian paths at any time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sde.law import check_normal, largest_correlation
from torchimplicit.sde import Tree, joined

D = torch.float64
SAMPLES = 5_000
quick = settings(max_examples=20, derandomize=True)
times = st.lists(st.floats(0.0, 2.0), min_size=3, max_size=3, unique=True).map(sorted)


def bind(batch, width=1, dtype=D, **options):
    return Tree(seed=9, span=(0.0, 2.0), **options).bind(torch.empty(batch, width, dtype=dtype))


@quick
@given(times=times)
def test_intervals_add_up(times):
    """Exactly for the path, and by Chen's relation for the areas."""
    s, t, u = times
    tree = bind(3, 2, depth=40)
    if min(t - s, u - t) < tree.source.cell:
        return
    first, second, whole = tree.between(s, t), tree.between(t, u), tree.between(s, u)
    total = joined(first, second, t - s, u - t)
    assert torch.allclose(total.W, whole.W, rtol=0, atol=1e-15)
    assert torch.allclose(total.H, whole.H, rtol=0, atol=1e-14 / (u - s))
    assert torch.allclose(tree.at(t) - tree.at(s), first.W, rtol=0, atol=1e-15)


@quick
@given(order=st.permutations(range(6)))
def test_any_order_and_any_batch_and_every_sample_its_own_times(order):
    tree = bind(6, 2)
    ts = torch.linspace(0.1, 1.9, 6, dtype=D)
    path = tree.at(ts)
    for i in order:
        assert torch.equal(tree.at(ts[i].item())[i], path[i])
    alone = Tree(seed=tree.seeds[[4, 1]], span=(0.0, 2.0)).bind(torch.empty(2, 2, dtype=D))
    assert torch.equal(alone.at(ts[[4, 1]]), path[[4, 1]])
    assert torch.equal(tree.take(torch.tensor([4, 1])).at(ts[[4, 1]]), path[[4, 1]])
    assert torch.equal(tree.at(torch.stack([ts, ts.flip(0)]))[0], path)


@pytest.mark.parametrize(("s", "t", "u"), [(0.1, 0.37, 1.9), (0.5002, 0.5004, 0.52), (0.0, 2 / 3, 2.0)])
def test_the_law(s, t, u):
    tree = bind(SAMPLES, 2)
    first, second = tree.between(s, t), tree.between(t, u)
    rows = [
        first.W[:, 0] / (t - s) ** 0.5, first.H[:, 0] / ((t - s) / 12) ** 0.5, first.W[:, 1] / (t - s) ** 0.5,
        second.W[:, 0] / (u - t) ** 0.5, second.H[:, 0] / ((u - t) / 12) ** 0.5,
    ]  # fmt: skip
    for row in rows:
        check_normal(row)
    assert largest_correlation(torch.stack(rows)) < 4 / SAMPLES**0.5


def test_ends():
    tree = bind(2)
    assert torch.equal(tree.at(0.0), torch.zeros(2, 1, dtype=D))
    assert torch.equal(tree.between(0.0, 2.0).W, tree.at(2.0))


def test_a_deeper_tree_is_the_same_path_at_the_nodes():
    ts = torch.tensor([0.25, 1.75], dtype=D)
    assert torch.allclose(bind(2, depth=3).at(ts), bind(2, depth=20).at(ts), rtol=1e-13)


def test_single_precision_is_rounded_at_the_end():
    """Areas of short intervals are small differences: in single precision all through nothing would be left of them."""
    single, double = (bind(SAMPLES, dtype=dtype, depth=24).between(0.7, 0.7 + 1e-5) for dtype in (torch.float32, D))
    assert single.H.dtype == torch.float32
    assert torch.allclose(single.H.double(), double.H, rtol=1e-6)
    check_normal(single.H / (1e-5 / 12) ** 0.5)


def test_intervals_within_a_cell_are_refused_and_what_helps():
    """There increments are not independent."""
    tree = bind(SAMPLES, depth=10)
    with pytest.raises(ValueError, match=r"length 0\.001, expected at least 0\.00195, .*try a larger depth, or longer"):
        tree.between(0.5, 0.501)
    inside = [tree.at(0.5 + k * 1e-4) - tree.at(0.5 + (k - 1) * 1e-4) for k in (5, 6)]
    assert torch.corrcoef(torch.stack(inside).squeeze(-1))[0, 1] > 0.5  # why
    deeper = bind(SAMPLES, depth=16)
    steps = [deeper.between(0.5 + (k - 1) * 1e-4, 0.5 + k * 1e-4) for k in (5, 6)]
    check_normal(steps[0].W / 1e-2)
    assert largest_correlation(torch.cat([step.W.T for step in steps])) < 4 / SAMPLES**0.5
    tree.between(0.5, 0.5 + tree.source.cell)


@pytest.mark.parametrize("t", [-0.1, 2.1, float("nan")])
def test_times_outside(t):
    with pytest.raises(ValueError, match=r"outside of span=\(0\.0, 2\.0\); try a longer span"):
        bind(2).at(t)


def test_a_longer_span_helps():
    assert Tree(seed=1, span=(-1.0, 3.0)).bind(torch.empty(2, 1)).at(2.1).isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"span": (1.0, 1.0)}, "a start and an end after it"),
        ({"span": 1.0}, "a start and an end after it"),
        ({"depth": 0}, "an integer from 1 to 50"),
        ({"depth": 51}, "an integer from 1 to 50"),
        ({"depth": 2.0}, "an integer from 1 to 50"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(ValueError, match=words):
        Tree(**options)

"""Batches of irregular series: padding, parts, unions, and what is refused."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchimplicit import odeint
from torchimplicit.nn import Series

D = torch.float64
NAN = torch.nan


def drawn(lengths, channels=2, seed=0):
    """Series of these lengths, with holes; every one has an observation."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        times = torch.rand(length, generator=draw, dtype=D).sort().values
        values = torch.randn(length, channels, generator=draw, dtype=D)
        mask = torch.rand(length, channels, generator=draw) < 0.5
        mask[0, 0] = True
        rows.append((times, values, mask))
    return rows


def same(one, other):
    return all(torch.equal(getattr(one, name).nan_to_num(7), getattr(other, name).nan_to_num(7)) for name in PARTS)


PARTS = ("times", "values", "mask")


def test_padding():
    series = Series.of([
        (torch.tensor([0.0, 1.0]), torch.tensor([[1.0, NAN], [NAN, 2.0]])),
        (torch.tensor([3.0]), torch.tensor([[4.0, 5.0]]), torch.tensor([[True, False]])),
    ])  # fmt: skip
    assert len(series) == 2
    assert series.channels == 2
    assert torch.equal(series.times.nan_to_num(-1), torch.tensor([[0.0, 1.0], [3.0, -1.0]]))
    assert torch.equal(series.values, torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[4.0, 0.0], [0.0, 0.0]]]))
    assert series.mask.tolist() == [[[True, False], [False, True]], [[True, False], [False, False]]]
    assert series.lengths.tolist() == [2, 1]
    assert series.observations.tolist() == [2, 1]
    assert series.present.tolist() == [[True, True], [True, False]]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 100))
def test_rows_are_the_series_that_were_given(lengths, seed):
    rows = drawn(lengths, seed=seed)
    series = Series.of(rows)
    for number, row in enumerate(rows):
        assert same(series[number], Series.of([row]))
    assert same(series[1:], Series.of(rows[1:])) if len(rows) > 1 else True
    flipped = list(range(len(rows)))[::-1]
    assert same(series[flipped], Series.of(rows[::-1]))
    assert same(series[torch.tensor(flipped)], Series.of(rows[::-1]))
    assert len(list(series)) == len(rows)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.floats(-0.1, 1.1), st.integers(0, 100))
def test_before_and_since_part_a_series(lengths, cut, seed):
    series = Series.of(drawn(lengths, seed=seed))
    early, late = series.before(cut), series.since(cut)
    assert torch.equal(early.lengths + late.lengths, series.lengths)
    assert torch.equal(early.observations + late.observations, series.observations)
    assert bool((early.times < cut)[early.present].all())
    assert bool((late.times >= cut)[late.present].all())
    for number, length in enumerate(early.lengths.tolist()):
        joined = torch.cat((early.values[number, :length], late.values[number, : late.lengths[number]]))
        assert torch.equal(joined, series.values[number, : series.lengths[number]])
    assert torch.equal(series.before(torch.full((len(lengths),), cut, dtype=D)).lengths, early.lengths)


def test_parts_by_mask():
    series = Series.of(drawn([4, 2]))
    kept = torch.tensor([[True, False, True, False], [False, True, True, True]])
    thinned = series.at(kept)
    assert thinned.lengths.tolist() == [2, 1]
    assert torch.equal(thinned.times[0], series.times[0, [0, 2]])
    assert torch.equal(thinned.values[1, 0], series.values[1, 1])
    none = torch.zeros_like(series.mask)
    blind = series.only(none)
    assert blind.observations.tolist() == [0, 0]
    assert torch.equal(blind.lengths, series.lengths)
    with pytest.raises(ValueError, match=r"Series.at: got torch.bool \(2, 3\), expected a mask torch.bool \(2, 4\)"):
        series.at(kept[:, 1:])
    with pytest.raises(ValueError, match=r"Series.only: got torch.float64"):
        series.only(series.values)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 100))
def test_the_union_has_all_times_and_the_same_observations(lengths, seed):
    series = Series.of(
        [(times.mul(5).round().unique(), *rest) for times, *rest in drawn([1] * len(lengths), seed=seed)]
    )
    series = series if seed % 2 else Series.of(drawn(lengths, seed=seed))
    union = series.union()
    assert union.times.shape == (len(series), len(series.times[series.present].unique()))
    assert torch.equal(union.observations, series.observations)
    for row in range(len(series)):
        assert torch.equal(union.times[row][union.mask[row].any(1)], series.times[row][series.mask[row].any(1)])
        assert torch.equal(union.values[row][union.mask[row]], series.values[row][series.mask[row]])


def test_dtypes_and_pickles():
    series = Series.of(drawn([3, 1]))
    single = series.to(torch.float32)
    assert single.times.dtype == single.values.dtype == torch.float32
    assert single.mask.dtype == torch.bool
    assert same(pickle.loads(pickle.dumps(series)), series)
    with pytest.raises(TypeError, match="expected a floating dtype"):
        series.to(torch.int64)


def test_what_is_hidden_has_no_gradient():
    values = torch.tensor([[1.0, NAN], [NAN, 2.0]], requires_grad=True)
    Series.of([(torch.tensor([0.0, 1.0]), values)]).values.square().sum().backward()
    assert torch.equal(values.grad, torch.tensor([[2.0, 0.0], [0.0, 4.0]]))


T2, V2 = torch.tensor([0.0, 1.0]), torch.ones(2, 1)
FINE = (T2, V2)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "got no series, expected at least one"),
        ([FINE, (T2, V2 * NAN)], ValueError, "series 1 has no observations, expected at least one"),
        ([FINE, (T2[:0], V2[:0])], ValueError, "series 1 has no observations"),
        ([FINE, (T2.flip(0), V2)], ValueError, "series 1 has time 1 followed by 0 at position 1, expected times that"),
        ([FINE, (T2 * 0, V2)], ValueError, "series 1 has time 0 followed by 0 at position 1.*join what repeats"),
        ([FINE, (T2 / 0, V2)], ValueError, "series 1 has time NaN at position 0"),
        ([FINE, (torch.tensor([0.0, torch.inf]), V2)], ValueError, "series 1 has time inf at position 1"),
        ([FINE, (T2, V2 * NAN, V2 > 0)], ValueError, "series 1 has the observation nan at position 0, channel 0"),
        ([FINE, (T2, V2 * torch.inf)], ValueError, "series 1 has the observation inf at position 0, channel 0"),
        ([FINE, (T2, V2, V2[:1] > 0)], ValueError, r"series 1 has a mask of torch.bool \(1, 1\)"),
        ([FINE, (T2, V2, V2)], ValueError, r"series 1 has a mask of torch.float32 \(2, 1\)"),
        ([FINE, (T2, V2[:, 0])], ValueError, r"series 1 has times \(2,\) and values \(2,\), expected \(T,\) and"),
        ([FINE, (T2, torch.ones(2, 3))], ValueError, "series 1 has 3 channels, expected 1"),
        ([FINE, (T2, [1.0, 2.0])], TypeError, "series 1 has .* values a list"),
        ([FINE, (T2.long(), V2)], TypeError, r"series 1 has times torch.int64 \(2,\)"),
        ([FINE, T2], TypeError, r"series 1 is torch.float32 \(2,\), expected a pair"),
    ],
)
def test_bad_series_are_named(rows, error, message):
    with pytest.raises(error, match=message):
        Series.of(rows)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ((T2, V2, V2 > 0), ValueError, r"got times \(2,\), values \(2, 1\), mask \(2, 1\), expected times \(B, T\)"),
        ((T2[None], V2[None], V2 > 0), ValueError, r"mask \(2, 1\)"),
        ((T2[None], V2[None], V2[None]), TypeError, r"mask torch.float32 \(1, 2, 1\)"),
        ((T2[None], V2.long()[None], V2[None] > 0), TypeError, r"values torch.int64"),
        ((T2[None] * NAN, V2[None], V2[None] > 0), ValueError, "series 0 has an observation at padding, position 0"),
        ((torch.tensor([[NAN, 0.0]]), V2[None], V2[None] < 0), ValueError, "time nan followed by 0 at position 1"),
    ],
)
def test_bad_batches(parts, error, message):
    with pytest.raises(error, match=message):
        Series(*parts)


def test_times_that_rounding_has_made_the_same_are_said_to_be():
    since_1970 = torch.tensor([1.7e9, 1.7e9 + 30], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"torch.float32 has steps of 128 there: subtract the first time in float64"):
        Series.of([(since_1970.float(), torch.ones(2, 1))])
    Series.of([(since_1970, torch.ones(2, 1))])
    with pytest.raises(ValueError, match=r"join what repeats$"):
        Series.of([(torch.zeros(2), torch.ones(2, 1))])
    with pytest.raises(ValueError, match=r"torch.float32 has steps of 128 there"):
        odeint(lambda t, y: -y, torch.ones(1, 1), torch.tensor([1.7e9, 1.7e9 + 30, 1.7e9 + 500]))

"""Encoders: what they read and in which order, closed forms, independence of mates and padding, bad input."""

import pytest
import torch
from torch import nn

from tests.nn.latent.stays import D, rows, stays
from torchimplicit.nn import ODERNN, GRUEncoder, NeuralCDE, ODERNNEncoder, Series, TimeAttention
from torchimplicit.nn.latent.encoder import read

REFERENCES = torch.linspace(0, 1, 6, dtype=D)


def gru(**options):
    torch.manual_seed(0)
    return GRUEncoder(3, 4, 8, **options).double()


def odernn(**options):
    torch.manual_seed(0)
    return ODERNNEncoder(3, 4, 8, 16, **options).double()


def attention(**options):
    torch.manual_seed(0)
    return TimeAttention(3, 4, REFERENCES, 8, features=8, **options).double()


ENCODERS = pytest.mark.parametrize("make", [gru, odernn, attention])
RECURRENT = pytest.mark.parametrize("make", [gru, odernn])


def test_reading_backward():
    series = stays([3, 1])
    reading = read(series, reverse=True)
    assert reading.order.tolist() == [[2, 1, 0], [0, 1, 2]]
    assert torch.allclose(reading.gaps[0], torch.tensor([0.0, *series.times[0].diff().flip(0)], dtype=D))
    assert torch.equal(reading.gaps[1], torch.zeros(3, dtype=D))
    assert torch.equal(reading.inputs[0, :, :3], series.values[0].flip(0))
    assert torch.equal(reading.back(reading.inputs)[:, :, :3], series.values)
    assert torch.equal(read(series, reverse=False).inputs[:, :, :3], series.values)


@ENCODERS
def test_a_distribution_with_gradients_at_every_parameter(make):
    encoder = make()
    q = encoder(stays([5, 1, 3]))
    assert q.mean.shape == q.stddev.shape == (3, 4)
    assert bool((q.stddev > 0).all())
    (q.mean.sum() + q.stddev.sum()).backward()
    assert all(bool(each.grad.isfinite().all() and each.grad.any()) for each in encoder.parameters())


@ENCODERS
def test_neither_mates_nor_padding_change_a_bit(make):
    encoder = make()
    few, other, long = (rows([n], seed=n)[0] for n in (7, 4, 500))
    base = encoder.context(Series.of([few, other, other]))
    for mates in ([few, long, other], [few, rows([1])[0], rows([7], seed=9)[0]]):
        context = encoder.context(Series.of(mates))
        assert torch.equal(context.whole[0], base.whole[0])
        count = 7 if make is not attention else 6
        assert torch.equal(context.values[0, :count], base.values[0, :count])


@ENCODERS
def test_what_was_not_observed_is_not_seen(make):
    series = stays([6, 2])
    noisy = Series(series.times, torch.where(series.mask, series.values, 1e3), series.mask)
    assert torch.equal(make()(noisy).mean, make()(series).mean)


@RECURRENT
def test_backward_contexts_know_what_lies_ahead_alone(make):
    series = stays([6])
    changed = Series(
        series.times, series.values + torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=D)[None, :, None], series.mask
    )
    one, other = make().context(series), make().context(changed)
    assert torch.equal(one.values[:, 3:], other.values[:, 3:])
    assert not torch.equal(one.values[:, 2], other.values[:, 2])
    assert torch.equal(one.values[:, 0], one.whole)
    forth, changed = make(reverse=False).context(series), make(reverse=False).context(changed)
    assert not torch.equal(forth.values[:, 0], changed.values[:, 0])
    assert torch.equal(forth.values[:, -1], forth.whole)


@RECURRENT
def test_gaps_are_seen(make):
    series = stays([4])
    assert not torch.equal(make()(series).mean, make()(Series(2 * series.times, series.values, series.mask)).mean)
    moved = Series(series.times + 5, series.values, series.mask)
    assert torch.allclose(make()(series).mean, make()(moved).mean)


@pytest.mark.parametrize(
    ("one", "other"),
    [(gru(), gru(layers=2)), (odernn(), odernn(steps=2)), (attention(), attention(heads=2))],
)
def test_options_change_what_is_read(one, other):
    assert not torch.equal(one(stays([4])).mean, other(stays([4])).mean)


def test_attention_is_a_softmax_over_a_variable_s_observations():
    encoder, series = attention(heads=2), stays([5, 2])
    found = encoder.means(REFERENCES, series).unflatten(-1, (2, 6))
    query, key = encoder.query(encoder._features(REFERENCES)), encoder.key(encoder._features(series.times[0, :5]))
    for head in range(2):
        scores = query[:, head * 8 : head * 8 + 8] @ key[:, head * 8 : head * 8 + 8].T / 8**0.5
        for channel in range(3):
            seen = series.mask[0, :, channel]
            mean = scores[:, seen].softmax(1) @ series.values[0, seen, channel]
            assert torch.allclose(found[0, :, head, channel], mean)
            share = scores.softmax(1)[:, seen].sum(1)
            assert torch.allclose(found[0, :, head, 3 + channel], share)


def test_attention_that_is_sharp_divides_by_nothing():
    encoder = attention().float()
    with torch.no_grad():
        encoder.query.weight.mul_(1e4)
    series = stays([6]).to(torch.float32)
    lone = series.only(torch.zeros_like(series.mask).index_fill_(1, torch.tensor([0]), True))
    means = encoder.means(REFERENCES.float(), lone)
    assert torch.allclose(means[0, :, 0], lone.values[0, 0, 0].expand(6))


def test_a_state_that_moves_solves_its_equation():
    torch.manual_seed(0)
    model = ODERNN(channels=1, width=2, steps=50).double()
    model.recurrence.field = nn.Linear(2, 2).double()
    series = Series.of([(torch.tensor([0.0, 1.0], dtype=D), torch.tensor([[1.0], [2.0]], dtype=D))])
    before, after = model.recurrence(read(series, reverse=False))
    a, b = model.recurrence.field.weight, model.recurrence.field.bias
    block = torch.zeros(3, 3, dtype=D)
    block[:2, :2], block[:2, 2] = a.detach(), b.detach()
    exact = (torch.linalg.matrix_exp(block) @ torch.cat((after[0, 0], after.new_ones(1))))[:2]
    assert torch.allclose(before[0, 1], exact, atol=1e-4)
    assert torch.equal(before[0, 0], torch.zeros(2, dtype=D))


def test_next_values_do_not_see_themselves():
    torch.manual_seed(0)
    model, series = ODERNN(channels=3, width=8).double(), stays([5, 2])
    changed = Series(series.times, series.values + torch.tensor([0.0, 0, 1, 1, 1], dtype=D)[None, :, None], series.mask)
    one, other = model(series), model(changed)
    assert one.shape == (2, 5, 3)
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.equal(one[0, 3], other[0, 3])


def test_forecasts_go_on_along_the_equation():
    torch.manual_seed(0)
    model, series = ODERNN(channels=3, width=8, steps=40).double(), stays([5, 2])
    ts = torch.tensor([1.5, 2.0], dtype=D)
    ahead = model.forecast(series, ts)
    assert ahead.shape == (2, 2, 3)
    assert model.report.converged
    nothing = torch.zeros(2, 3, dtype=D)
    blind = Series.of(
        (torch.cat((times, ts)), torch.cat((values, nothing)), torch.cat((mask, nothing.bool())))
        for times, values, mask in rows([5, 2])
    )
    stepped = model(blind)
    assert torch.allclose(ahead[0], stepped[0, 5:7], atol=1e-3)
    assert torch.allclose(ahead[1], stepped[1, 2:4], atol=1e-3)
    own = torch.tensor([[1.5, 2.0], [1.5, torch.nan]], dtype=D)
    assert torch.equal(model.forecast(series, own)[0], ahead[0])
    with pytest.raises(ValueError, match=r"got 0.1 for series 0, expected no time before its last one"):
        model.forecast(series, ts - 1.4)


def test_bad_series():
    blind = stays([3, 1]).before(0.0)
    for encoder in (gru(), odernn(), attention(), ODERNN(3).double()):
        name = type(encoder).__name__
        with pytest.raises(ValueError, match="series 0 has no observations, expected at least one to read"):
            encoder(blind)
        with pytest.raises(
            ValueError, match=rf"{name}: got series of 2 channels, expected 3; try {name}\(channels=2\)"
        ):
            encoder(stays([3], channels=2))
        with pytest.raises(TypeError, match="expected a Series"):
            encoder(torch.zeros(2, 3))


def test_bad_options():
    with pytest.raises(ValueError, match=r"GRUEncoder\(channels=0\): expected an integer >= 1"):
        GRUEncoder(0, 4)
    with pytest.raises(ValueError, match=r"GRUEncoder\(layers=0\)"):
        GRUEncoder(3, 4, layers=0)
    with pytest.raises(ValueError, match=r"ODERNN\(steps=0\)"):
        ODERNN(3, steps=0)
    with pytest.raises(ValueError, match=r"TimeAttention\(ts=.*expected increasing times"):
        TimeAttention(3, 4, REFERENCES.flip(0))
    with pytest.raises(ValueError, match=r"TimeAttention\(features=1\): expected an integer >= 2"):
        TimeAttention(3, 4, REFERENCES, features=1)


def test_series_of_another_precision_are_refused():
    series = Series.of([(torch.arange(3.0).double(), torch.ones(3, 2).double())])
    cde = NeuralCDE(nn.Unflatten(1, (2, 3)), nn.Linear(3, 6), nn.Linear(6, 1))
    readers = (
        GRUEncoder(2, 4), ODERNNEncoder(2, 4), TimeAttention(2, 4, torch.linspace(0, 1, 4)),
        ODERNN(2, 4, 4), cde,
    )  # fmt: skip
    for reader in readers:
        with pytest.raises(TypeError, match=f"{type(reader).__name__}: got torch.float64, expected torch.float32"):
            reader(series)

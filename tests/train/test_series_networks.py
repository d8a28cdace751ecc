"""Networks of irregular series, and the two ways in which their errors are counted."""

import copy

import pytest
import torch
from torch import nn

from torchimplicit.nn import Series
from torchimplicit.train.modules import ErrorAsLatentODE, ErrorOverObservations
from torchimplicit.train.networks import (
    GRUD,
    BalancedLikelihood,
    LatentODENetwork,
    LatentSDENetwork,
    ODERNNNetwork,
    SummaryEncoder,
    Units,
)
from torchimplicit.train.networks.series.base import with_times
from torchimplicit.train.networks.series.last_values import Carry, last_before, last_values

D = torch.float64


def stays(lengths, channels=3, seed=0, share=0.5):
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        times = torch.rand(length, generator=draw, dtype=D).sort().values
        mask = torch.rand(length, channels, generator=draw) < share
        mask[0, 0] = True
        rows.append((times, torch.randn(length, channels, generator=draw, dtype=D), mask))
    return Series.of(rows)


def by_hand(series, row, channel, t):
    """The last observation before a time, by a loop."""
    found = [
        (float(time), float(value))
        for time, value, seen in zip(
            series.times[row], series.values[row, :, channel], series.mask[row, :, channel], strict=True
        )
        if seen and float(time) < t
    ]
    return found[-1] if found else None


@pytest.mark.parametrize("seed", range(3))
def test_last_values_are_those_that_a_loop_finds(seed):
    series = stays([5, 1, 8], seed=seed)
    ts = torch.cat((series.times[:, :3], torch.rand(3, 4, dtype=D)), 1)  # also exactly at times, and padding
    last = last_before(series, ts)
    filled = last_values(series, ts, torch.tensor([7.0, 8, 9], dtype=D))
    for row in range(3):
        for place in range(7):
            t = float(ts[row, place])
            if t != t:
                continue
            for channel in range(3):
                found = by_hand(series, row, channel, t)
                assert bool(last.ever[row, place, channel]) == (found is not None)
                time, value = found or (float(series.times[row, 0]), 7.0 + channel)
                assert float(filled[row, place, channel]) == value
                assert float(last.since[row, place, channel]) == pytest.approx(t - time)


@pytest.mark.parametrize("seed", range(3))
def test_times_are_put_between_those_of_series(seed):
    series = stays([5, 1, 8], seed=seed)
    ts = torch.cat((series.times[:, :2], torch.rand(3, 4, dtype=D)), 1)
    merged, place = with_times(series, ts)
    for row in range(3):
        every = {float(t) for t in torch.cat((series.times[row], ts[row])) if t == t}
        assert merged.times[row][~merged.times[row].isnan()].tolist() == sorted(every)
        for t, at in zip(ts[row], place[row], strict=True):
            assert t != t or merged.times[row, at] == t
        again = merged.at(merged.mask.any(2))[row]
        seen = series.at(series.mask.any(2))[row]
        assert torch.equal(again.times, seen.times)
        assert torch.equal(again.values, seen.values)


def slow_errors(prediction, target):
    """Both counts by loops."""
    counted, squares = [], []
    for row in range(len(target)):
        for channel in range(target.channels):
            here = target.mask[row, :, channel]
            each = (prediction[row, :, channel] - target.values[row, :, channel])[here].square().tolist()
            counted.append(sum(each) / len(each) if each else 0.0)
            squares += each
    return sum(counted) / len(counted), sum(squares) / len(squares)


def test_errors_are_counted_in_both_ways():
    target, prediction = stays([6, 2, 4], share=0.3), torch.randn(3, 6, 3, dtype=D)
    published, plain = ErrorAsLatentODE(), ErrorOverObservations()
    for rows in ([0], [1, 2]):
        for metric in (published, plain):
            part = target[rows]
            metric.update(prediction[rows, : part.times.shape[1]], part)
    assert (float(published.compute()), float(plain.compute())) == pytest.approx(slow_errors(prediction, target))


def test_what_was_not_observed_counts_as_no_error():
    series = Series.of([(torch.zeros(1), torch.tensor([[1.0, torch.nan, torch.nan]]))])
    published, plain = ErrorAsLatentODE(), ErrorOverObservations()
    for metric in (published, plain):
        metric.update(torch.tensor([[[3.0, 50.0, torch.nan]]]), series)
    assert float(published.compute()) == pytest.approx(4 / 3)
    assert float(plain.compute()) == pytest.approx(4)


def test_the_balanced_likelihood_is_the_published_error():
    target, prediction = stays([6, 2, 4], share=0.3), torch.randn(3, 6, 3, dtype=D)
    metric, likelihood = ErrorAsLatentODE(), BalancedLikelihood(0.1).double()
    metric.update(prediction, target)
    perfect = likelihood(target.values, target).mean()
    error = (perfect - likelihood(prediction, target).mean()) * 2 * 0.1**2
    assert float(error) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_units_are_those_of_what_was_observed():
    series, units = stays([9, 30, 20]), Units(3).double()
    units.settle(series)
    for channel in range(3):
        known = series.values[..., channel][series.mask[..., channel]]
        assert float(units.mean[channel]) == pytest.approx(float(known.mean()))
        assert float(units.std[channel]) == pytest.approx(float(known.std(unbiased=False)))
    standard = units.standard(series)
    assert torch.allclose(units(standard.values)[series.mask], series.values[series.mask])
    assert (standard.values[~series.mask] == 0).all()


def test_units_of_what_never_changes_or_never_was_observed_are_finite():
    units = Units(2)
    units.settle(Series.of([(torch.tensor([0.0, 1.0]), torch.tensor([[5.0, torch.nan], [5.0, torch.nan]]))]))
    assert units.mean.tolist() == [5, 0]
    assert units.std.tolist() == [1, 1]


def slow_gru_d(network, series, row, t):
    """The prediction at one time of one series, by the equations of the paper, one step after another."""
    standard = network.units.standard(series)
    steps = [i for i, x in enumerate(standard.times[row].tolist()) if x < t and standard.mask[row, i].any()]
    h = torch.zeros(network.cell.hidden_size, dtype=D)
    for step, now in [*((i, float(standard.times[row, i])) for i in steps), (None, t)]:
        found = [by_hand(standard, row, c, now) for c in range(3)]
        first = float(standard.times[row, 0])
        since = torch.tensor([now - (f[0] if f else first) for f in found], dtype=D)
        last = torch.tensor([f[1] if f else 0.0 for f in found], dtype=D)
        h = h * torch.exp(-torch.relu(network.state_decay(since)))
        if step is not None:
            weight, bias = network.input_decay
            mask = standard.mask[row, step]
            guess = last * torch.exp(-torch.relu(weight * since + bias))
            x = torch.where(mask, standard.values[row, step], guess)
            h = network.cell(torch.cat((x, mask.to(D))), h)
    return network.units(network.read(h))


def test_gru_d_follows_the_equations_of_its_paper():
    torch.manual_seed(0)
    network, series = GRUD(3, width=5, hidden=4).double().eval(), stays([6, 3])
    nn.init.normal_(network.input_decay)
    network.units.settle(series)
    ts = torch.tensor([[0.3, 0.9, 1.5], [0.2, 0.5, 3.0]], dtype=D)
    with torch.no_grad():
        predicted = network.predict(series, ts)
        for row in range(2):
            for place in range(3):
                expected = slow_gru_d(network, series, row, float(ts[row, place]))
                assert torch.allclose(predicted[row, place], expected, atol=1e-12)


NETWORKS = {
    "gru-d": lambda: GRUD(3, width=5, hidden=4),
    "ode-rnn": lambda: ODERNNNetwork(3, width=5, hidden=4),
    "summary": lambda: LatentODENetwork(3, latent=4, width=5, hidden=6, draws=2),
    "gru": lambda: LatentODENetwork(3, latent=4, encoder="gru", width=5, hidden=6, draws=2),
    "encoded by ode-rnn": lambda: LatentODENetwork(3, latent=4, encoder="ode-rnn", width=5, hidden=6, draws=2),
    "attention": lambda: LatentODENetwork(3, latent=4, encoder="attention", width=5, hidden=6, draws=2),
    "sde": lambda: LatentSDENetwork(3, latent=2, width=5, hidden=6, samples=2, draws=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_predicts_costs_and_learns(name):
    torch.manual_seed(0)
    network, series = NETWORKS[name]().double(), stays([6, 3])
    network.units.settle(series)
    seen, target = series.before(0.6), series.since(0.6)
    network.train()
    cost = network.cost(seen, target, 0.5).series
    assert cost.shape == (2,)
    cost.mean().backward()
    learned = [each.grad is not None and bool(each.grad.isfinite().all()) for each in network.parameters()]
    assert any(learned)
    network.eval()
    with torch.no_grad():
        one, other = network.predict(seen, target.times), network.predict(seen, target.times)
        assert torch.equal(one, other)  # what is measured is not drawn anew
        assert one.shape == target.values.shape
        assert torch.equal(network.cost(seen, target).series, network.cost(seen, target).series)
        assert network(seen).shape == seen.values.shape
        assert torch.equal(copy.deepcopy(network).predict(seen, target.times), one)


@pytest.mark.parametrize("name", ["gru-d", "ode-rnn"])
def test_a_baseline_knows_nothing_of_what_comes_later(name):
    torch.manual_seed(0)
    network, series = NETWORKS[name]().double().eval(), stays([8])
    later = series.times[0, 4]
    changed = Series(series.times, series.values + 5.0 * (series.times >= later).unsqueeze(2), series.mask)
    with torch.no_grad():
        one, other = (network.predict(each, series.times) for each in (series, changed))
    assert torch.equal(one[:, :5], other[:, :5])
    assert not torch.equal(one[:, 5:], other[:, 5:])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_series_does_not_depend_on_its_batch_mates(name):
    torch.manual_seed(0)
    network, series = NETWORKS[name]().double().eval(), stays([6, 3, 9])
    ts = torch.tensor([[1.0, 1.2], [1.1, torch.nan], [1.5, 1.6]], dtype=D)
    with torch.no_grad():
        every, one = network.predict(series, ts), network.predict(series[[0]], ts[[0]])
    assert torch.allclose(every[0], one[0], atol=1e-12)


def test_the_summary_holds_the_last_value_and_the_mean_of_every_variable():
    encoder, series = SummaryEncoder(3, latent=4, width=5).double(), stays([6, 1])
    whole = encoder.context(series).whole.detach()
    last, mean, ever, since = whole[:, 5:].split(3, 1)
    for row in range(2):
        for channel in range(3):
            here = series.mask[row, :, channel]
            assert bool(ever[row, channel]) == bool(here.any())
            if here.any():
                values, times = series.values[row, :, channel][here], series.times[row][here]
                assert float(last[row, channel]) == float(values[-1])
                assert float(mean[row, channel]) == pytest.approx(float(values.mean()))
                end = float(series.times[row][~series.times[row].isnan()].max())
                assert float(since[row, channel]) == pytest.approx(end - float(times[-1]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LatentODENetwork(3, encoder="lstm"), r"LatentODENetwork\(encoder='lstm'\): expected one of summary"),
        (lambda: GRUD(3, weighting="stays"), r"GRUD\(weighting='stays'\): expected one of variables"),
        (lambda: LatentODENetwork(3, std=0.0), "expected a number > 0"),
    ],
)
def test_impossible_options_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_what_is_carried_is_the_last_value_on_its_way_to_the_mean():
    carry, mean = Carry(3).double(), torch.tensor([1.0, 2, 3], dtype=D)
    with torch.no_grad():
        carry.keep.copy_(torch.tensor([0.5, -1, 30], dtype=D))
        carry.rate.copy_(torch.tensor([0.3, 1, -40], dtype=D))
    series = stays([5, 1])
    ts = torch.rand(2, 4, dtype=D)
    last, found = last_before(series, ts), carry(series, ts, mean)
    keep = 1 / (1 + torch.exp(-torch.tensor([0.5, -1, 30], dtype=D)))
    rate = torch.log(1 + torch.exp(torch.tensor([0.3, 1, -40], dtype=D)))
    by_formula = keep * torch.exp(-rate * last.since) * (last.value - mean) * last.ever
    assert last.ever.any()
    assert not last.ever.all()
    assert torch.allclose(found, by_formula, rtol=1e-12, atol=0)
    # the third keeps all, whatever the gap
    assert torch.allclose((mean + found)[..., 2], last_values(series, ts, mean)[..., 2], rtol=1e-9)


def test_a_carrying_latent_ode_tells_departures_from_the_last_values():
    torch.manual_seed(0)
    seen, later = stays([4, 3, 1]), stays([5, 2, 3], seed=1)
    target = Series(later.times + 1, later.values, later.mask)
    net = LatentODENetwork(3, 4, width=8, hidden=8, draws=2, carry=True).double().eval()
    net.units.settle(seen)
    plain = copy.deepcopy(net)
    plain.carry = None
    carried = net.carry(seen, target.times, net.units.mean)
    told = Series(target.times, target.values - carried, target.mask)
    assert torch.allclose(net.predict(seen, target.times), carried + plain.predict(seen, target.times), rtol=1e-12)
    assert torch.equal(net.cost(seen, target).series, plain.cost(seen, told).series)
    net.cost(seen, target).series.mean().backward()
    assert all(bool(each.grad.isfinite().all()) and bool(each.grad.any()) for each in net.carry.parameters())

"""Distances of samples against closed forms and orders that must hold; features that repeat; samplers compared."""

import math

import pytest
import torch

from torchimplicit.train.quality import (
    FeatureNetwork,
    Quality,
    Reference,
    Verdict,
    compare,
    frechet_distance,
    inpainting_figures,
    plot_qualities,
    sliced_wasserstein,
    train_features,
)
from torchimplicit.train.quality.pictures import strips


class Identity(torch.nn.Module):
    num_features = 3

    def forward(self, x):
        return x


def clusters(count, seed, shape=(6,)):
    """Two classes that lie apart, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    noise = 0.2 * torch.randn(count, *shape, generator=generator)
    return (noise + (labels.view(-1, *(1,) * len(shape)) - 0.5)).clamp(-1, 1), labels


def exact(samples, moments):
    """Samples moved such that their mean and covariance are as given."""
    mean, factor = moments
    centred = samples - samples.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(centred.T)), centred.T, upper=False).T
    return mean + white @ factor.T


def test_the_frechet_distance_is_that_of_normal_laws():
    torch.manual_seed(0)
    mean = torch.tensor([0.3, -0.2, 0.1]).double()
    scale = torch.diag(torch.tensor([1.0, 2.0, 0.5])).double()
    first = exact(torch.randn(400, 3).double(), (torch.zeros(3).double(), torch.eye(3).double()))
    second = exact(torch.randn(300, 3).double(), (mean, scale))
    expected = float(mean.square().sum()) + 0 + 1 + 0.25  # covariances commute: sum of (s1 - s2)^2
    assert frechet_distance(Identity(), first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(Identity(), first, first) == pytest.approx(0, abs=1e-6)


def test_the_frechet_distance_leaves_the_network_as_it_is():
    samples, labels = clusters(200, 0)
    network = train_features(samples, labels, 2, steps=5)
    frechet_distance(network, samples, samples)
    assert next(network.parameters()).dtype == torch.float32
    assert not network.training


def test_the_sliced_distance_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    data = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double()
    shift = torch.tensor([3.0, 0.0, 4.0, 0.0]).double()
    found = sliced_wasserstein(data + shift, data, directions=4000)
    assert found == pytest.approx(5 / math.sqrt(4), rel=0.03)  # E (theta . v)^2 = |v|^2 / n
    assert sliced_wasserstein(data, data.flip(0)) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(data + shift, data) == sliced_wasserstein(data + shift, data)


@pytest.mark.parametrize("shape", [(6,), (1, 6, 6), (3, 5, 7)])
def test_features_tell_classes_apart_and_repeat(shape):
    samples, labels = clusters(300, 0, shape)
    state = torch.get_rng_state()
    first, second = (train_features(samples, labels, 2, steps=40) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    held, held_labels = clusters(100, 1, shape)
    assert torch.equal(first(held), second(held))
    assert first(held).shape == (100, first.num_features)
    assert float((first.classify(held) == held_labels).float().mean()) > 0.95
    assert not torch.equal(train_features(samples, labels, 2, steps=40, seed=1)(held), first(held))


def test_fewer_samples_than_a_batch_train_features_too():
    samples, labels = clusters(20, 0)
    assert train_features(samples, labels, 2, steps=3).classify(samples).shape == (20,)


def test_features_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected a shape \(n,\) or \(C, H, W\)"):
        FeatureNetwork((3, 3), 2)


@pytest.fixture(scope="module")
def reference():
    return Reference(*clusters(600, 0), classes=2)


def test_worse_samples_are_judged_worse(reference):
    held, labels = clusters(300, 2)
    real, other = reference.judge(held, labels), reference.judge(held, 1 - labels)
    noisy = reference.judge((held + 0.5 * torch.randn(held.shape)).clamp(-1, 1), labels)
    assert real.frechet < noisy.frechet
    assert real.sliced < noisy.sliced
    assert real.agreement > noisy.agreement > 0.5 > other.agreement
    assert math.isnan(reference.judge(held).agreement)


class Off:
    """A sampler of real samples with noise that falls with the evaluations."""

    def __init__(self, evaluations):
        self.evaluations = evaluations


def test_samplers_are_compared_on_the_same_draws(reference):
    seen = []

    def draw(sampler, seed):
        seen.append((sampler.evaluations, seed))
        samples, labels = clusters(200, 10 + seed)
        return samples + torch.randn(samples.shape) / sampler.evaluations, labels, sampler.evaluations

    few, many = compare([Off(2), Off(20)], draw, reference, draws=3)
    assert seen == [(2, 0), (2, 1), (2, 2), (20, 0), (20, 1), (20, 2)]
    assert (few.sampler, few.evaluations, len(few.verdicts)) == ("Off", 2, 3)
    assert few.mean("frechet") > many.mean("frechet") + 2 * few.spread("frechet")
    figure = plot_qualities([few, many], Verdict(1.0, 0.01, 1.0))
    assert [ax.get_title() for ax in figure.axes] == ["Frechet distance", "sliced Wasserstein distance"]
    assert list(figure.axes[0].containers[0].lines[0].get_xdata()) == [2, 20]


def test_mean_and_spread_are_those_of_the_draws():
    quality = Quality("A", 5, tuple(Verdict(value, 0.0, 0.0) for value in (1.0, 2.0, 6.0)))
    assert quality.mean("frechet") == 3
    assert quality.spread("frechet") == pytest.approx(math.sqrt(7))
    assert math.isnan(Quality("A", 5, quality.verdicts[:1]).spread("frechet"))


def test_strips_have_a_row_for_each_sample_and_a_column_for_each_time():
    rows = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4) / 48
    figure = strips(rows, ("a", "b"), ("one", "two"))
    first, second = (torch.tensor(ax.images[0].get_array()) for ax in figure.axes)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["one", "two"]
    assert first.shape == (2 * 3, 3 * 3)
    assert torch.equal(second[3:5, 6:8], rows[1, 2, 1].reshape(2, 2))
    assert (first[2] == 1).all()


class Bright(torch.nn.Module):
    """Sees class 1 where the first number is positive."""

    def classify(self, x):
        return (x.flatten(1)[:, 0] > 0).long()


def test_what_guidance_gains_is_paired_by_draws():
    truth = torch.zeros(4, 1, 2, 2)
    labels = torch.tensor([0, 1, 1, 1])

    def drawn(error, bright):
        found = truth.clone()
        found[:, :, 1:] = error
        found[:bright, :, 0, 0] = 1.0
        return found

    draws = [
        {"guidance": drawn(0.2, 4), "replacement": drawn(2.0, 0)},
        {"guidance": drawn(0.02, 3), "replacement": drawn(0.2, 3)},
    ]
    found = inpainting_figures(draws, truth, labels, Bright())
    assert found["psnr/guidance"] == pytest.approx((20 + 40) / 2)
    assert found["psnr/replacement"] == pytest.approx((0 + 20) / 2)
    assert found["psnr/gain"] == pytest.approx(20)
    assert found["psnr/gain_spread"] == pytest.approx(0, abs=1e-4)  # each way differs by 20 from draw to draw
    assert found["agreement/guidance"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert found["agreement/gain"] == pytest.approx((2 / 4 + 0) / 2)
    assert found["agreement/gain_spread"] == pytest.approx(0.5 / math.sqrt(2))
    assert set(found) - set(inpainting_figures(draws[:1], truth, labels, Bright())) == {
        "psnr/gain_spread", "agreement/gain_spread",
    }  # fmt: skip

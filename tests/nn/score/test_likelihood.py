"""Likelihoods: exact for normal data on every schedule, their gradients, dequantisation, bad input."""

import math

import pytest
import torch

import torchimplicit as ti
from tests.nn.score.gaussian import MEAN, SCHEDULES, VARIANCE, D, Exact, double, model, moved

FINE = {"solver": ti.Tsit5(rtol=1e-9, atol=1e-9)}
BITS = math.log(2)


def normal(x, variance, mean=0.0):
    return torch.distributions.Normal(mean, torch.as_tensor(variance, dtype=D).sqrt()).log_prob(x).sum(1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_bits_per_dimension_of_normal_data(schedule):
    """Of any mean and variance, the base being what it is; and of those that the base is made for, the data's own."""
    own, x = model(schedule), MEAN + VARIANCE.sqrt() * double(5, 3)
    least, most = schedule.levels
    with torch.no_grad():
        found = own.log_prob(x, **FINE)
        grown = ((VARIANCE + most**2) / (VARIANCE + least**2)).log().sum() / 2
        expected = normal(moved(x, least, most), most**2 + 0.25) + grown
        assert ((found - expected).abs() / (3 * BITS) < 1e-6).all()
        own.network.mean.zero_()
        own.network.variance.fill_(0.25)
        found = own.log_prob(x, **FINE)
    assert ((found - normal(x, 0.25 + least**2)).abs() / (3 * BITS) < 1e-6).all()
    assert own.report.converged


def test_the_base_is_that_of_any_data_as_its_noise_grows():
    x, errors = MEAN + VARIANCE.sqrt() * double(2, 3), []
    for most in (1e2, 1e6):
        own = model(ti.nn.EDM(sigma_max=most))
        with torch.no_grad():
            apart = own.log_prob(x, solver=ti.Tsit5(rtol=1e-10, atol=1e-10)) - normal(x, VARIANCE + 0.002**2, MEAN)
        errors.append(float(apart.abs().max()) / (3 * BITS))
    assert errors[0] < 5e-3
    assert errors[1] < 1e-6


def test_of_a_class():
    own = ti.nn.Denoiser(Exact(), ti.nn.EDM(sigma_max=1e4), shape=3, classes=2, interval=None)
    x, label = double(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        found, free = own.log_prob(x, label, **FINE), own.log_prob(x, **FINE)
    mean = torch.where(label == 2, 0, label - 0.5)[:, None].double()
    assert torch.allclose(found, normal(x, VARIANCE + 0.002**2, mean), atol=2e-3)
    assert torch.allclose(free[label == 2], found[label == 2], atol=1e-8)
    assert not torch.allclose(free[label == 1], found[label == 1])


def test_gradients_of_a_class():
    class Classes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.means = torch.nn.Embedding(3, 2).double()

        def forward(self, t, x, label):
            return self.means(label) * (x + t).cos()

    own = ti.nn.Denoiser(Classes(), ti.nn.EDM(0.1, 5.0), shape=2, classes=2, interval=None)
    x, label = double(3, 2), torch.tensor([0, 1, 1])

    def run(weight):
        wrapped = LogProb(own, "exact")
        return torch.func.functional_call(wrapped, {"model.network.means.weight": weight}, (x, label))

    (weight,) = own.parameters()
    assert torch.autograd.gradcheck(run, (weight,))
    (found,) = torch.autograd.grad(run(weight).sum(), weight)
    assert (found[:2] != 0).all()
    assert (found[2] == 0).all()


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gradients(trace):
    own, x = model(ti.nn.EDM(0.1, 5.0)), double(2, 3).requires_grad_()
    names, weights = zip(*own.named_parameters(), strict=True)

    def run(x, *weights):
        torch.manual_seed(0)
        wrapped = LogProb(own, trace)
        named = {f"model.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(wrapped, named, (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


class LogProb(torch.nn.Module):
    """The likelihood as a module's forward, which functional calls take."""

    def __init__(self, model, trace):
        super().__init__()
        self.model, self.trace = model, trace

    def forward(self, x, label=None):
        return self.model.log_prob(x, label, trace=self.trace, solver=ti.RK4(dt=1.0))


def test_hutchinsons_estimate_is_unbiased():
    own = ti.nn.Denoiser(Coupled(), shape=3, interval=None)
    x = double(1, 3).expand(4000, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        found = own.log_prob(x, trace="hutchinson", solver=ti.RK4(dt=0.5))
        expected = own.log_prob(x[:1], solver=ti.RK4(dt=0.5))
    assert found.std() > 1e-3
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(4000)


class Coupled(Exact):
    """A network whose entries depend on each other, so that a probe's estimate has a variance."""

    def forward(self, t, x, label=None):
        return super().forward(t, x) + 0.3 * torch.tanh(x.roll(1, 1))


def test_bits_of_grey_levels():
    """Normal levels of a width: the code of `P(k)` is met from above, and closely where levels are narrow."""
    own = ti.nn.Denoiser(Exact(mean=torch.zeros(3, dtype=D), variance=torch.full((3,), 0.01).double()), shape=3)
    levels, width = 64, 2 / 64
    images = ((0.1 * double(3000, 3) + 1) / width).floor().long()
    with torch.no_grad():
        bits = own.bits_per_dimension(images, levels=levels, seed=1)
    edges = torch.distributions.Normal(torch.zeros((), dtype=D), 0.1)
    code = -(edges.cdf(-1 + width * (images + 1)) - edges.cdf(-1 + width * images)).log2().mean(1)
    assert 0 < (bits - code).mean() < 0.01


def test_the_spread_within_a_level_is_by_seed():
    own, images = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2), torch.zeros(4, 2).long()
    options = {"levels": 8, "solver": ti.RK4(dt=0.5)}
    seeds = torch.tensor([3, 5, 3, 8])
    bits = own.bits_per_dimension(images, seed=seeds, **options)
    assert torch.equal(own.bits_per_dimension(images[1:3], seed=seeds[1:3], **options), bits[1:3])
    assert bits[0] == bits[2] != bits[1]
    assert not torch.equal(own.bits_per_dimension(images, **options), own.bits_per_dimension(images, **options))


def test_the_flow_shares_weights_and_samples():
    own = model()
    flow = own.flow(solver=ti.Tsit5(rtol=1e-6, atol=1e-6))
    assert {id(p) for p in flow.parameters()} == {id(p) for p in own.parameters()}
    torch.manual_seed(0)
    with torch.no_grad():
        x = flow.sample(20_000)
    assert ((x.mean(0) - MEAN).abs() < 4 * (VARIANCE / 20_000).sqrt()).all()
    assert ((x.var(0) / VARIANCE - 1).abs() < 4 * math.sqrt(2 / 20_000)).all()
    flow.log_prob(x[:2]).sum().backward()
    assert own.network.mean.grad.norm() > 0


class Broken(Exact):
    """No number for samples far to the right at little noise."""

    def forward(self, t, x, label=None):
        return torch.where((t < -1) & (x[:, :1] > 1), torch.nan, super().forward(t, x))


def test_failures_are_told_and_others_do_not_feel_them():
    own, x = ti.nn.Denoiser(Broken(), shape=3, interval=None), torch.tensor([[0.1, 0.2, 0.3], [0.9, 0, 0]]).double()
    with pytest.warns(ti.ConvergenceWarning, match="in Denoiser"):
        own.log_prob(x)
    found = own.log_prob(x)  # told once
    assert own.report.failed.tolist() == [1]
    assert torch.allclose(found[:1], model().log_prob(x[:1]), rtol=1e-4)
    own.on_failure = "raise"
    with pytest.raises(ti.ConvergenceError):
        own.log_prob(x)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: m.log_prob(x.long()), TypeError, r"torch.int64, expected floating.*bits_per_dimension"),
        (lambda m, x: m.log_prob(x.double() / 128 - 1), ValueError, r"got grey levels \(\d+ different .* 0 of 32"),
        (lambda m, x: m.log_prob(x.double()), ValueError, r"got values from .*expected them within \(-1.0, 1.0\)"),
        (lambda m, x: m.log_prob(double(4, 3)), ValueError, r"got \(4, 3\), expected samples of shape \(B, 1, 4, 8\)"),
        (lambda m, x: m.bits_per_dimension(x / 255), TypeError, r"got torch.float32, expected whole grey levels.*255"),
        (lambda m, x: m.bits_per_dimension(x, levels=16), ValueError, "grey levels from 0 to .*expected 0 to 15"),
        (lambda m, x: m.bits_per_dimension(-1 - x), ValueError, "grey levels from -"),
        (lambda m, x: m.bits_per_dimension(x > 3), ValueError, "black and white images for levels=256.*levels=2"),
        (lambda m, x: m.bits_per_dimension(x[:, 0]), ValueError, r"got \(4, 4, 8\), expected samples of shape"),
        (lambda m, x: m.bits_per_dimension([3]), ValueError, "got list"),
        (lambda m, x: m.bits_per_dimension(x, levels=1), ValueError, "levels=1"),
        (lambda m, x: m.bits_per_dimension(x, seed=torch.arange(3)), ValueError, "got 3 seeds for a batch of 4"),
        (lambda m, x: m.log_prob(torch.zeros(4, 1, 4, 8), 3), ValueError, "got classes for a model without"),
        (lambda m, x: m.log_prob(torch.zeros(4, 1, 4, 8), trace="all"), ValueError, "trace='all'"),
    ],
)
def test_bad_input(call, error, words):
    own = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=(1, 4, 8))
    images = (torch.arange(128).view(4, 1, 4, 8) * 37 % 12) ** 2
    with pytest.raises(error, match=words):
        call(own, images)


def test_the_least_noise_is_below_the_width_of_a_level():
    own, images = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), ti.nn.VE(), shape=2), torch.zeros(1, 2).long()
    with pytest.raises(ValueError, match=r"least noise is 0.01 for grey levels 0.00781 wide.*try a smaller sigma_min"):
        own.bits_per_dimension(images)
    assert own.bits_per_dimension(images, levels=64, solver=ti.RK4(dt=1.0)).isfinite()


def test_bits_need_an_interval_and_points_are_no_grey_levels():
    with pytest.raises(ValueError, match="got interval=None"):
        model().bits_per_dimension(torch.zeros(2, 3).long())
    own = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=20)
    found = own.log_prob(torch.cat([torch.zeros(1, 20), double(2, 20).clamp(-0.9, 0.9).float()]), solver=ti.RK4(dt=1.0))
    assert found.isfinite().all()

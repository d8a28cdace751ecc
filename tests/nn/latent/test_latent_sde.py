"""Latent SDEs: the evidence of a linear-Gaussian model beside Kalman's, forecasts, draws, spread, bad input."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import torchimplicit as ti
from tests.nn.latent.stays import D, rows, stays
from torchimplicit import sde
from torchimplicit.nn import (
    GaussianLikelihood,
    GRUEncoder,
    LatentSDE,
    NormalPrior,
    ODERNNEncoder,
    Series,
    TimeAttention,
)
from torchimplicit.nn.latent.encoder import Context

RATE, SIZE, ERROR = 0.7, 0.6, 0.3
STATIONARY = SIZE / math.sqrt(2 * RATE)


class Pull(nn.Module):
    def forward(self, z):
        return -RATE * z


class Size(nn.Module):
    def __init__(self, size=SIZE):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(size, dtype=D))

    def forward(self, z):
        return self.size.expand_as(z)


class Smoother(ti.nn.Encoder):
    """The exact posterior of an Ornstein-Uhlenbeck process that is observed with normal errors.

    The context of a time is what lies there and later says of the state: a time, a mean and a variance.
    """

    def __init__(self):
        super().__init__(1, 1, 3)
        self.double()

    def context(self, series):
        found = torch.zeros(*series.times.shape, 3, dtype=D)
        for row in range(len(series)):
            precision = shift = torch.zeros((), dtype=D)
            for place in reversed(range(int(series.lengths[row]))):
                t = series.times[row, place]
                if precision > 0:
                    a, q = transition(found[row, place + 1, 0] - t)
                    precision, shift = a**2 / (q + 1 / precision), a * (shift / precision) / (q + 1 / precision)
                if series.mask[row, place, 0]:
                    precision = precision + ERROR**-2
                    shift = shift + series.values[row, place, 0] / ERROR**2
                found[row, place] = torch.stack((t, shift / precision, 1 / precision))
        return Context(series.times, found, found[:, 0])

    def start(self, context):
        mean, variance = context.whole[:, 1:2], context.whole[:, 2:3]
        whole = 1 / (1 / variance + STATIONARY**-2)
        return Normal(whole * mean / variance, whole.sqrt())


def transition(gap):
    a = torch.exp(-RATE * gap)
    return a, STATIONARY**2 * (1 - a**2)


class Exact(nn.Module):
    """The noise's size times the gradient of the log-density of what lies ahead."""

    def forward(self, t, z, context):
        time, mean, variance, gap = context.split(1, 1)
        assert torch.allclose(time - t, gap)
        a, q = transition(gap)
        return SIZE * a * (mean - a * z) / (q + variance)


class Timed(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, t, z):
        return self.function(z)


class Same(nn.Module):
    def forward(self, z):
        return z


def kalman(dt=0.01, **options):
    """The model whose posterior is exact."""
    parts = Smoother(), Timed(Pull()), Timed(Size()), Exact(), Same(), GaussianLikelihood(ERROR)
    options = {"solver": sde.EulerMaruyama(dt=dt), "start": NormalPrior(1, std=STATIONARY)} | options
    return LatentSDE(*parts, **options)


def evidence(series, row):
    n = int(series.lengths[row])
    seen = series.mask[row, :n, 0]
    times = series.times[row, :n][seen]
    covariance = STATIONARY**2 * torch.exp(-RATE * (times[:, None] - times).abs()) + ERROR**2 * torch.eye(len(times))
    return MultivariateNormal(torch.zeros(len(times), dtype=D), covariance).log_prob(series.values[row, :n, 0][seen])


def smoothed(series, row, ts):
    """Mean and variance of the state at times, given one series."""
    n = int(series.lengths[row])
    seen = series.mask[row, :n, 0]
    times, x = series.times[row, :n][seen], series.values[row, :n, 0][seen]
    kernel = lambda a, b: STATIONARY**2 * torch.exp(-RATE * (a[:, None] - b).abs())  # noqa: E731
    gain = kernel(ts, times) @ (kernel(times, times) + ERROR**2 * torch.eye(len(times), dtype=D)).inverse()
    return gain @ x, STATIONARY**2 - (gain * kernel(ts, times)).sum(1)


def observed():
    return Series.of([(3 * times, *rest) for times, *rest in rows([8, 1, 5], channels=1, seed=4)])


@pytest.mark.parametrize("kl", ["quadratic", "pathwise"])
def test_the_bound_is_kalman_s_evidence_where_the_posterior_is_exact(kl):
    own, series = kalman(kl=kl), observed()
    exact = torch.stack([evidence(series, row) for row in range(3)])
    with torch.no_grad():
        value = own.elbo(series, samples=1000, seed=1)
    assert float(value.sum()) == pytest.approx(float(exact.sum()), rel=0.01)
    assert torch.allclose(value, exact, atol=0.15)
    assert own.report.converged


def test_weights_of_single_paths_are_the_evidence_where_the_posterior_is_exact():
    own, series = kalman(kl="pathwise", dt=0.01), observed()
    exact = torch.stack([evidence(series, row) for row in range(3)])
    with torch.no_grad():
        for seed in range(3):
            value = own.elbo(series, bound="iwae", seed=seed)
            assert bool(((value - exact).abs() < 0.5).all())
        value = own.elbo(series, samples=500, bound="iwae", seed=7)
    assert bool(((value - exact).abs() < 0.01 * exact.abs()).all())


def test_another_control_costs_evidence():
    own, series = kalman(), observed()
    own.control = nn.Identity()
    own.control.forward = lambda t, z, context: torch.zeros_like(z)
    exact = torch.stack([evidence(series, row) for row in range(3)])
    with torch.no_grad():
        value = own.elbo(series, samples=500, seed=1)
    assert bool((own.kl_path == 0).all())
    assert bool((value < exact + 0.02)[1])
    assert bool((value < exact - 0.1)[[0, 2]].all())


def test_paths_are_those_of_the_smoother_and_forecasts_the_equation_s_own():
    own, series = kalman(), observed()
    ts = torch.tensor([3.0, 3.5, 5.0], dtype=D)
    with torch.no_grad():
        inside = own(series[0], torch.cat((series.times[0], ts)), samples=4000, seed=2)[:, 0, :, 0]
    mean, variance = smoothed(series, 0, torch.cat((series.times[0], ts)))
    assert torch.allclose(inside.mean(0), mean, atol=0.04)
    assert torch.allclose(inside.var(0), variance, rtol=0.12, atol=0.005)


def test_paths_before_anything_is_observed():
    own = kalman()
    with torch.no_grad():
        paths = own.prior(4000, torch.tensor([0.0, 1.0, 2.0], dtype=D), seed=3)
    assert paths.shape == (4000, 3, 1)
    assert torch.allclose(paths.var(0)[:, 0], torch.full((3,), STATIONARY**2, dtype=D), rtol=0.1)
    assert torch.equal(
        own.prior(2, torch.tensor([0.0, 1.0], dtype=D), seed=3), own.prior(2, torch.tensor([0.0, 1.0], dtype=D), seed=3)
    )


def test_the_spread_tells_noise_from_starts():
    own, series = kalman(dt=0.02), observed()[0]
    ts = torch.linspace(float(series.times[0, 0]), 3.0, 9, dtype=D)
    found = own.spread(series, ts, samples=1500, seed=1)
    variance = smoothed(series, 0, ts)[1].mean()
    assert torch.allclose(found.total, variance.expand(1, 1), rtol=0.1)
    assert bool((found.diffusion < found.total).all())
    seen = series.values[0][series.mask[0]]
    assert torch.allclose(found.data, seen.var(correction=0).expand(1, 1))
    still = kalman(dt=0.02)
    still.diffusion = Timed(Size(1e-6))
    none = still.spread(series, ts, samples=50, seed=1)
    assert bool((none.diffusion < 1e-9).all())
    assert bool((none.total > 1e-3).all())


class Control(nn.Module):
    def __init__(self, latent, width, channels=None):
        super().__init__()
        self.net = nn.Linear(latent + width + 1, channels or latent)

    def forward(self, z, context):
        return self.net(torch.cat((z, context), 1))


def model(drift=None, diffusion=None, control=None, encoder=None, **options):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    sizes = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    encoder = encoder or GRUEncoder(3, 2, 6)
    parts = encoder, drift or plain, diffusion or sizes, control or Control(2, 6), nn.Linear(2, 3)
    options = {"autonomous": True, "solver": sde.EulerMaruyama(dt=0.2)} | options
    return LatentSDE(*parts, GaussianLikelihood(0.5, learned=True), **options).double()


def test_gradients_reach_every_parameter_and_agree_with_differences():
    own, series = model(), stays([4, 2])
    own.elbo(series, samples=2, seed=1).sum().backward()
    for name, parameter in own.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
    h = 1e-5
    for weight in (own.drift[0].weight, own.diffusion[0].weight, own.control.net.weight, own.start.mean):
        slope, place = weight.grad.flatten()[0], weight.detach().view(-1)[:1]
        with torch.no_grad():
            place += h
            above = own.elbo(series, samples=2, seed=1).sum()
            place -= 2 * h
            below = own.elbo(series, samples=2, seed=1).sum()
            place += h
        assert float(slope) == pytest.approx(float((above - below) / (2 * h)), rel=1e-5, abs=1e-8)


def test_the_divergence_has_two_parts_and_a_weight():
    own, series = model(), stays([5, 3])
    plain = own.elbo(series, samples=3, seed=1)
    q, p = own.encoder(series), own.start(torch.zeros(1, dtype=D))
    start = torch.distributions.kl_divergence(q, p).sum(1)
    assert torch.allclose(own.kl, own.kl_path + start)
    assert bool((own.kl_path > 0).all())
    assert torch.allclose(own.elbo(series, samples=3, kl_weight=0.25, seed=1), plain + 0.75 * own.kl)


def test_one_observation_has_no_path():
    own, series = model(), stays([1, 4])
    own.elbo(series, seed=1)
    assert float(own.kl_path[0].detach()) == 0.0


@pytest.mark.parametrize(
    "encoder", [ODERNNEncoder(3, 2, 6), TimeAttention(3, 2, torch.linspace(0, 0.9, 4), 6)], ids=["odernn", "attention"]
)
def test_other_encoders(encoder):
    own, series = model(encoder=encoder.double()), stays([5, 2])
    own.elbo(series, samples=2, seed=1).sum().backward()
    assert bool((own.kl_path > 0).all())
    assert all(bool(p.grad.isfinite().all() and p.grad.any()) for p in own.parameters())


@pytest.mark.parametrize("noise", ["scalar", "general"])
def test_other_noise(noise):
    channels = 1 if noise == "scalar" else 3
    sizes = nn.Sequential(nn.Linear(2, 2 * channels), nn.Unflatten(1, (2, channels)))
    drift = nn.Linear(2, 2)
    own, series = model(drift, sizes, Control(2, 6, channels), noise=noise), stays([4, 2])
    own.elbo(series, samples=2, seed=1).sum().backward()
    assert bool(own.kl_path.isfinite().all() and (own.kl_path > 0).all())
    assert all(bool(p.grad.isfinite().all()) for p in own.parameters())
    own.control = Control(2, 6, channels + 1).double()
    with pytest.raises(ValueError, match=r"control: got shape \(2, .\), expected"):
        own.elbo(series, seed=1)


def test_draws_belong_to_a_series():
    own = model()
    few, other, long = (rows([n], seed=n)[0] for n in (7, 4, 30))
    seeds = torch.tensor([5, 6, 7])
    value = own.elbo(Series.of([few, other, other]), samples=2, seed=seeds)
    assert torch.equal(own.elbo(Series.of([few, long, other]), samples=2, seed=seeds)[0], value[0])
    moved = own.elbo(Series.of([other, few, other]), samples=2, seed=torch.tensor([6, 5, 7]))
    assert torch.allclose(moved[1], value[0], rtol=1e-12)
    alone = own.elbo(Series.of([few]), samples=2, seed=seeds[:1])  # whose steps are made together
    assert torch.allclose(alone[0], value[0], rtol=1e-12)
    torch.manual_seed(1)
    fresh = own.elbo(Series.of([few])), own.elbo(Series.of([few]))
    assert not torch.equal(*fresh)
    torch.manual_seed(1)
    assert torch.equal(own.elbo(Series.of([few])), fresh[0])


def test_starts_and_paths_have_noise_of_their_own():
    own = kalman(dt=1.0)
    series = Series.of([(torch.tensor([0.0, 1.0], dtype=D), torch.zeros(2, 1, dtype=D))])
    own.control = nn.Identity()
    own.control.forward = lambda t, z, context: torch.zeros_like(z)
    z = own.paths(series, series.times, samples=4000, seed=1)[:, 0, :, 0]
    start, step = own.starts[:, 0, 0], z[:, 1] - (1 - RATE) * z[:, 0]
    assert abs(float(torch.corrcoef(torch.stack((start, step)))[0, 1].detach())) < 0.06


def test_copies_and_pickles():
    own, series = model(), stays([3, 2])
    value = own.elbo(series, seed=1)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(other.elbo(series, seed=1), value)
    assert "kl='quadratic'" in repr(own)


def test_bad_calls_and_parts():
    own, series = model(), stays([3, 2])
    coarse = Series(series.times + 1e9, series.values.float(), series.mask)
    with pytest.raises(ValueError, match=r"series 0 has times that are the same in torch.float32.*try times - times"):
        model().float().elbo(coarse)
    for other in (own, model(kl="pathwise", solver=sde.Milstein(dt=0.2))):
        with pytest.raises(ValueError, match="try kl='pathwise' and EulerMaruyama"):
            other.elbo(series, bound="iwae")
    with pytest.raises(ValueError, match=r"LatentSDE.spread\(samples=1\): expected an integer >= 2"):
        own.spread(series, samples=1)
    with pytest.raises(ValueError, match="expected no time before its first one"):
        own(series, series.times - 1)
    with pytest.raises(ValueError, match=r"LatentSDE.prior\(samples=0\)"):
        own.prior(0, torch.tensor([0.0, 1.0]))
    encoder, net, control = GRUEncoder(3, 2, 6, reverse=False), nn.Linear(2, 2), Control(2, 6)
    with pytest.raises(ValueError, match="got reverse=False, expected an encoder that reads what lies ahead"):
        LatentSDE(encoder, net, net, control, net, autonomous=True)
    encoder = GRUEncoder(3, 2, 6)
    with pytest.raises(TypeError, match=r"LatentSDE\(drift=Linear\).*try autonomous=True"):
        LatentSDE(encoder, net, net, control, net)
    with pytest.raises(ValueError, match="noise: got 'red'"):
        LatentSDE(encoder, net, net, control, net, autonomous=True, noise="red")

"""Latent ODEs: the evidence of a linear-Gaussian model, bounds, draws, independence, failures, bad input."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import torchimplicit as ti
from tests.nn.latent.stays import D, rows, stays
from torchimplicit.nn import GaussianLikelihood, GRUEncoder, LatentODE, NormalPrior, Series

TIGHT = ti.Tsit5(rtol=1e-9, atol=1e-10)


def network(inputs, outputs, width=8):
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def model(field=None, **options):
    torch.manual_seed(0)
    encoder, plain = GRUEncoder(3, 4, 8).double(), network(4, 4)
    options = {"autonomous": field is None, "solver": TIGHT} | options
    return LatentODE(encoder, field or plain, network(4, 3), GaussianLikelihood(0.5), **options)


class Decay(nn.Module):
    """A field that pulls to zero at two rates."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.5, 2.0], dtype=D))

    def forward(self, t, z):
        return -self.rates * z


class Exact(ti.nn.Encoder):
    """The posterior of the start of a linear-Gaussian model: observations are `C exp(-r (t - t0)) z0` and noise."""

    def __init__(self, rates, matrix, std):
        super().__init__(1, 2, 1)
        self.rates, self.matrix, self.noise = rates, matrix, std

    def rows(self, series, row):
        n = int(series.lengths[row])
        times, seen = series.times[row, :n], series.mask[row, :n, 0]
        return (self.matrix * torch.exp(-self.rates * (times - times[0]).unsqueeze(1)))[seen], seen, n

    def forward(self, series):
        means, stds = [], []
        for row in range(len(series)):
            a, seen, n = self.rows(series, row)
            precision = torch.eye(2, dtype=D) + a.T @ a / self.noise**2
            mean = torch.linalg.solve(precision, a.T @ series.values[row, :n, 0][seen]) / self.noise**2
            means.append(mean)
            stds.append(precision.inverse().diagonal().sqrt())
        return Normal(torch.stack(means), torch.stack(stds))

    def evidence(self, series, row):
        a, seen, n = self.rows(series, row)
        covariance = a @ a.T + self.noise**2 * torch.eye(len(a), dtype=D)
        return MultivariateNormal(torch.zeros(len(a), dtype=D), covariance).log_prob(series.values[row, :n, 0][seen])


def linear(matrix):
    field, decoder = Decay(), nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        decoder.weight.copy_(matrix)
    encoder = Exact(field.rates.detach(), matrix, 0.4)
    return LatentODE(encoder, field, decoder, GaussianLikelihood(0.4), solver=TIGHT), encoder


def test_the_bound_is_the_evidence_where_the_posterior_is_exact():
    own, encoder = linear(torch.tensor([1.0, 0.0], dtype=D))  # one state is not seen: its posterior is the prior
    series = stays([7, 1, 3], channels=1)
    evidence = torch.stack([encoder.evidence(series, row) for row in range(3)])
    for samples in (1, 4):
        value = own.elbo(series, samples=samples, bound="iwae", seed=3)
        assert torch.allclose(value, evidence, atol=1e-6)  # whatever was drawn
    value = own.elbo(series, samples=4000, seed=5)
    assert torch.allclose(value, evidence, atol=0.05)


def test_bounds_are_below_the_evidence_and_more_draws_are_closer():
    own, encoder = linear(torch.tensor([1.0, 1.0], dtype=D))  # the posterior is correlated, the encoder's is not
    series = stays([7, 1, 3], channels=1)
    evidence = torch.stack([encoder.evidence(series, row) for row in range(3)])
    elbo = own.elbo(series, samples=4000, seed=5).detach()
    few = torch.stack([own.elbo(series, samples=8, bound="iwae", seed=n) for n in range(50)]).mean(0).detach()
    assert bool((elbo < evidence + 0.02).all() and (few < evidence + 0.02).all())
    assert float(elbo[0]) < float(few[0]) - 0.02
    assert torch.allclose(own.elbo(series, samples=8000, bound="iwae", seed=5), evidence, atol=0.05)


def test_the_divergence_and_its_weight():
    own, series = model(), stays([5, 1])
    plain = own.elbo(series, samples=2, seed=1)
    q = own.encoder(series)
    kl = torch.distributions.kl_divergence(q, Normal(torch.zeros(4, dtype=D), 1.0)).sum(1)
    assert torch.allclose(own.kl, kl)
    assert torch.allclose(own.elbo(series, samples=2, kl_weight=0.25, seed=1), plain + 0.75 * kl)
    expected = own.likelihood(own.decoder(own.paths(series, series.times, 2, seed=1)), series).mean(0) - kl
    assert torch.allclose(plain, expected)
    wide = model(start=NormalPrior(4, std=3.0))
    wide.elbo(series)
    assert not torch.allclose(wide.kl, kl)


def test_gradients_reach_every_parameter_and_agree_with_differences():
    own, series = model(), stays([4, 2])
    own.elbo(series, samples=2, seed=1).sum().backward()
    for name, parameter in own.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
    weight = own.field[0].weight
    slope, h = weight.grad[0, 0], 1e-5
    with torch.no_grad():
        weight[0, 0] += h
        above = own.elbo(series, samples=2, seed=1).sum()
        weight[0, 0] -= 2 * h
        below = own.elbo(series, samples=2, seed=1).sum()
    assert float(slope) == pytest.approx(float((above - below) / (2 * h)), rel=1e-5)


def test_predictions_at_times_of_each_series_own():
    own, series = model(), stays([5, 1], first=0.0)
    shared = torch.tensor([0.0, 0.4, 2.0], dtype=D)
    value = own(series, shared, samples=3, seed=7)
    assert value.shape == (3, 2, 3, 3)
    assert torch.allclose(own.starts, own.paths(series, shared[:1], 3, seed=7)[:, :, 0])
    ragged = torch.tensor([[0.0, 0.4, 2.0], [0.4, torch.nan, torch.nan]], dtype=D)
    other = own(series, ragged, samples=3, seed=7)
    assert torch.equal(other[:, 0], value[:, 0])
    assert torch.allclose(other[:, 1, 0], value[:, 1, 1])
    assert torch.equal(other[:, 1, 1], other[:, 1, 0])


def test_paths_start_at_a_series_first_time():
    clock = []

    class Timed(nn.Module):
        def forward(self, t, z):
            clock.append(t.detach().flatten())
            return -t * z

    own = model(Timed())
    series = Series.of([(times + 3, *rest) for times, *rest in rows([4, 2])])
    z = own.paths(series, series.times, seed=0)[0]
    start = series.times[:, :1]
    expected = own.starts[0].unsqueeze(1) * torch.exp((start**2 - series.times**2) / 2).unsqueeze(2)
    seen = series.present
    assert torch.allclose(z[seen], expected[seen], atol=1e-7)
    assert bool((torch.cat(clock) >= 3).all())


def test_draws_belong_to_a_series():
    own = model()
    few, other, long = (rows([n], seed=n)[0] for n in (7, 4, 30))
    seeds = torch.tensor([5, 6, 7])
    value = own.elbo(Series.of([few, other, other]), samples=2, seed=seeds)
    assert torch.equal(own.elbo(Series.of([few, long, other]), samples=2, seed=seeds)[0], value[0])
    assert torch.equal(own.elbo(Series.of([few, other, long]), samples=2, seed=torch.tensor([5, 1, 2]))[0], value[0])
    moved = own.elbo(Series.of([other, few, other]), samples=2, seed=torch.tensor([6, 5, 7]))
    assert torch.allclose(moved[1], value[0], rtol=1e-12)
    more = own.paths(Series.of([few, other]), torch.tensor([1.0], dtype=D), samples=3, seed=seeds[:2])
    less = own.paths(Series.of([few, other]), torch.tensor([1.0], dtype=D), samples=2, seed=seeds[:2])
    assert torch.allclose(more[:2], less)
    assert not torch.allclose(more[0], more[1])


def test_draws_are_fresh_and_follow_torch_s_generator():
    own, series = model(), stays([3])
    torch.manual_seed(1)
    one, other = own.elbo(series), own.elbo(series)
    assert not torch.equal(one, other)
    torch.manual_seed(1)
    assert torch.equal(own.elbo(series), one)
    assert torch.equal(own.elbo(series, seed=4), own.elbo(series, seed=4))


def test_targets_that_lie_ahead_or_nowhere():
    own, series = model(), stays([6, 3], first=0.0)
    early, late = series.before(0.5), series.since(0.5)
    value = own.elbo(early, late, seed=1)
    assert value.shape == (2,)
    nothing = own.elbo(early, series.since(9.0), seed=1)
    assert torch.allclose(nothing, -own.kl)


def test_observation_times_cost_no_steps():
    own = model(solver=ti.Tsit5(rtol=1e-3, atol=1e-4))
    series = stays([60, 2], first=0.0)
    own.elbo(series)
    assert int(own.report.steps.max()) <= 4


def test_paths_that_fail_are_named():
    class Blown(nn.Module):
        def forward(self, t, z):
            return torch.where(z[:, :1] < 0, torch.nan, -z)

    own, series = model(Blown()), stays([3, 2])
    own.draw_starts = lambda q, seeds, samples: torch.tensor([[1.0] * 4, [-1.0] * 4], dtype=D)
    with pytest.warns(UserWarning, match="1 of 2"):
        z = own.paths(series, series.times)
    assert bool(z.isfinite().all())
    assert own.report.status.tolist()[0] != own.report.status.tolist()[1]
    own.on_failure = "raise"
    with pytest.raises(ti.ConvergenceError):
        own.paths(series, series.times)


def test_copies_and_pickles():
    own, series = model(), stays([3, 2])
    value = own.elbo(series, seed=1)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(other.elbo(series, seed=1), value)
        assert not other.kl.isnan().any()
    assert "solver=Tsit5" in repr(own)


def test_single_precision_and_defaults():
    torch.manual_seed(0)
    own = LatentODE(GRUEncoder(3, 4), nn.Linear(4, 4), nn.Linear(4, 3), autonomous=True)
    series = stays([3, 2]).to(torch.float32)
    assert own.elbo(series).dtype == torch.float32
    assert own.likelihood.std == pytest.approx(0.01)


def test_times_may_be_finer_than_values():
    own = model().float()
    own.solver = ti.Tsit5(rtol=1e-4, atol=1e-5)
    series = Series.of(
        [(times + 1e9, values.float(), mask) for times, values, mask in rows([4, 2])]
    )  # seconds since 1970
    value = own.elbo(series, seed=1)
    assert value.dtype == torch.float32
    near = Series(series.times - 1e9, series.values, series.mask).to(torch.float32)
    assert torch.allclose(value, own.elbo(near, seed=1), rtol=1e-3)


def test_learned_priors():
    prior = NormalPrior(2, mean=1.0, std=2.0, learned=True)
    assert len(list(prior.parameters())) == 2
    assert prior(torch.zeros(1, dtype=D)).mean.dtype == D
    assert float(prior(torch.zeros(1)).stddev[0].detach()) == pytest.approx(2.0)
    assert not list(NormalPrior(2).parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, s: m(s, s.times[:, :2] - 1), ValueError, "expected no time before its first one"),
        (lambda m, s: m(s, torch.tensor([2.0, 1.5], dtype=D)), ValueError, "strictly increase"),
        (lambda m, s: m(s, s.times.mT), ValueError, r"LatentODE\(ts=...\): got shape \(4, 2\), expected \(T,\)"),
        (lambda m, s: m(s, [1.0]), TypeError, "got a list, expected a floating tensor"),
        (lambda m, s: m(s, s.times, samples=0), ValueError, r"samples=0"),
        (lambda m, s: m.elbo(s, bound="tight"), ValueError, "expected 'elbo' or 'iwae'"),
        (lambda m, s: m.elbo(s, s[:1]), ValueError, "got 1 series as the target of 2"),
        (lambda m, s: m.elbo(s.values), TypeError, "expected a Series"),
        (lambda m, s: m.elbo(s, seed=torch.tensor([1])), ValueError, "got 1 seeds for a batch of 2"),
        (lambda m, s: m.elbo(s.before(-1.0)), ValueError, "series 0 has no times"),
    ],
)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call(model(), stays([4, 2]))


def test_bad_parts():
    encoder, field, decoder = GRUEncoder(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)
    with pytest.raises(TypeError, match=r"LatentODE\(encoder=...\): got a Linear, expected a Encoder"):
        LatentODE(field, field, decoder, autonomous=True)
    with pytest.raises(TypeError, match=r"LatentODE\(likelihood=...\): got GaussianLikelihood, a class"):
        LatentODE(encoder, field, decoder, GaussianLikelihood, autonomous=True)
    with pytest.raises(TypeError, match="try autonomous=True"):
        LatentODE(encoder, field, decoder)
    with pytest.raises(TypeError, match=r"LatentODE\(decoder=...\): got a int"):
        LatentODE(encoder, field, 3, autonomous=True)
    with pytest.raises(ValueError, match=r"NormalPrior\(std=0\)"):
        NormalPrior(2, std=0)

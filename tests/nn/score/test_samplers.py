"""Samplers: the law of their samples, their order, samples of their own, statuses, bad input."""

import math

import pytest
import torch
from torch import nn

import torchimplicit as ti
from tests.nn.score.gaussian import MEAN, SCHEDULES, VARIANCE, Exact, model, moved
from torchimplicit.nn.score.noise import Normals

SAMPLERS = [
    ti.nn.HeunEDM(120),
    ti.nn.HeunEDM(120, churn=30.0, churn_from=0.01, churn_to=30.0),
    ti.nn.DPMSolverMultistep(120),
    ti.nn.DPMSolverMultistep(120, rho=math.inf),
    ti.nn.PredictorCorrector(200),
    ti.nn.PredictorCorrector(300, corrections=0),
    ti.nn.ProbabilityFlow(ti.Tsit5(rtol=1e-4, atol=1e-4)),
    ti.nn.ReverseSDE(ti.sde.Heun(dt=0.1)),
    ti.nn.ReverseSDE(ti.sde.EulerMaruyama(dt=0.05)),
]
ODES = [ti.nn.HeunEDM, ti.nn.DPMSolverMultistep]
COUNT = 8000


class SizeOf(nn.Module):
    """The exact denoiser of normal images, the k-th of standard deviation `sizes[k]`."""

    def __init__(self, sizes):
        super().__init__()
        self.register_buffer("squares", sizes[:, None] ** 2)

    def forward(self, t, x):
        s = (4 * t).exp()
        return self.squares / (self.squares + s**2) * x * (s**2 + 0.25).sqrt()


def check_law(x):
    """Mean and covariance of normal data, within four standard errors."""
    assert ((x.mean(0) - MEAN).abs() < 4 * (VARIANCE / len(x)).sqrt()).all()
    scale = VARIANCE.sqrt()
    excess = torch.cov((x / scale).T) - torch.eye(3)
    assert (excess.abs() < 4 * (1 + torch.eye(3)).sqrt() / math.sqrt(len(x))).all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_mean_and_covariance(sampler):
    own = model()
    check_law(own.sample(COUNT, sampler, seed=1))
    assert own.report.converged


@pytest.mark.parametrize(("solver", "bound"), [(ti.Tsit5, 3), (ti.Dopri5, 2), (ti.Bosh3, 10), (ti.Dopri8, 1)])
def test_the_probability_flow_is_right_to_a_few_of_its_tolerances(solver, bound):
    sizes = torch.logspace(-1.7, 0.7, 1000, dtype=torch.float64)  # an image each, so that each has steps of its own
    own = ti.nn.Denoiser(SizeOf(sizes), shape=1, prediction="x", std=0.5).double()
    x = own.sample(1000, ti.nn.ProbabilityFlow(solver(rtol=1e-3, atol=1e-3)), seed=0)
    least, most = own.schedule.levels
    start = math.hypot(most, 0.5) * Normals(0, 1000, torch.Size([1]), x).draw(0)
    d = sizes[:, None]
    exact = start * ((d**2 + least**2) / (d**2 + most**2)).sqrt() * d**2 / (d**2 + least**2)
    assert ((x - exact).abs() / (1e-3 * (1 + exact.abs()))).max() < bound


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_mean_and_covariance_with_every_schedule(schedule):
    check_law(model(schedule).sample(COUNT, ti.nn.DPMSolverMultistep(120), seed=2))


@pytest.mark.parametrize("kind", ODES)
def test_order_two_on_the_probability_flow(kind):
    """Against where it leads the same noise; the last evaluation is known, too."""
    own = model(ti.nn.EDM(0.05, 10.0))
    errors = []
    for steps in (41, 81, 161):
        sampler = kind(steps, rho=3.0)
        x = own.sample(50, sampler, seed=3)
        start = math.hypot(10.0, 0.5) * Normals(3, 50, (3,), MEAN).draw(0)
        end = moved(start, 10.0, 0.05)
        expected = MEAN + VARIANCE / (VARIANCE + 0.05**2) * (end - MEAN)
        errors.append((x - expected).abs().max())
    assert 3.4 < errors[0] / errors[1] < 4.6
    assert 3.4 < errors[1] / errors[2] < 4.6


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_sample_depends_on_its_seed_and_nothing_else(sampler):
    own, seeds = model(), torch.arange(7) * 1000003
    x = own.sample(7, sampler, seed=seeds)
    order = torch.tensor([4, 0, 6, 2, 2])
    assert torch.equal(own.sample(5, sampler, seed=seeds[order]), x[order])
    for i in (0, 6):
        assert torch.equal(own.sample(1, sampler, seed=seeds[i : i + 1])[0], x[i])
    many = own.sample(70, sampler, seed=5)
    assert torch.equal(own.sample(7, sampler, seed=5), many[:7])
    assert len(many.unique(dim=0)) == 70


def test_noise_is_fresh_and_can_be_repeated(monkeypatch):
    own = model()
    torch.manual_seed(5)
    one, other = own.sample(3), own.sample(3)
    assert not torch.equal(one, other)
    assert torch.equal(own.sample(3, seed=own.report.seed), other)
    torch.manual_seed(5)
    assert torch.equal(own.sample(3), one)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(5)
        found.append(own.sample(3))
    assert torch.equal(found[0], one)
    assert not torch.equal(*found)


class Breaks(Exact):
    """No number below some noise level, for samples to the right."""

    def __init__(self, level=-0.5):
        super().__init__()
        self.level = level

    def forward(self, t, x, label=None):
        found = super().forward(t, x)
        return found * torch.where((t < self.level) & (x[:, :1] > 0.3), torch.nan, 1.0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_samples_that_break_are_told_and_no_other_feels_it(sampler):
    whole = model().sample(20, sampler, seed=1)
    own = ti.nn.Denoiser(Breaks(), shape=3, interval=None)
    with pytest.warns(ti.ConvergenceWarning, match=r"(?s)sample: .* in Denoiser.*non_finite: .*reached noise level"):
        x = own.sample(20, sampler, seed=1)
    failed = own.report.status == ti.Status.NON_FINITE
    assert failed.any()
    assert not failed.all()
    assert x.isfinite().all()
    assert torch.equal(x[~failed], whole[~failed])
    assert own.report.reached[failed].max() > 0.1
    own.on_failure = "raise"
    with pytest.raises(ti.ConvergenceError):
        own.sample(20, sampler, seed=1)
    assert own.report.failed.tolist() == torch.nonzero(failed).flatten().tolist()


@pytest.mark.parametrize(
    "sampler", [ti.nn.ProbabilityFlow(ti.RK4(dt=1.0)), ti.nn.ReverseSDE(ti.sde.SRA1(dt=1.0))], ids=str
)
def test_samples_of_solvers_have_gradients(sampler):
    own = model(ti.nn.EDM(0.1, 5.0))
    names, weights = zip(*own.network.named_parameters(), strict=True)

    class Drawn(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = own

        def forward(self):
            return self.model.sample(2, sampler, seed=1)

    def run(*weights):
        named = {f"model.network.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(Drawn(), named, ())

    assert torch.autograd.gradcheck(run, weights)
    assert not own.sample(2, seed=1).requires_grad


@pytest.mark.parametrize("sampler", [ti.nn.ProbabilityFlow(ti.RK4(dt=0.5)), ti.nn.ReverseSDE()], ids=str)
@pytest.mark.parametrize("level", [-0.5, math.log(0.0021) / 4], ids=["on the way", "at the end"])
def test_samples_that_break_add_nothing_to_gradients(sampler, level):
    own, whole = ti.nn.Denoiser(Breaks(level), shape=3, interval=None, on_failure="ignore"), model()
    x = own.sample(20, sampler, seed=1)
    good = own.report.status == ti.Status.CONVERGED
    assert 0 < good.sum() < 20
    x[good].sum().backward()
    whole.sample(20, sampler, seed=1)[good].sum().backward()
    for one, other in zip(own.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-8)
    own.zero_grad()
    own.sample(20, sampler, seed=1).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in own.parameters())


def test_the_noise_is_normal():
    """Of many seeds, draws and entries; those of other draws are others."""
    for seed in (0, 1, torch.arange(20_000)):
        noise = Normals(seed, 20_000, (3,), MEAN)
        z = torch.cat([noise.draw(0), noise.draw(1)], 1)
        assert (z.mean(0).abs() < 4 / math.sqrt(20_000)).all()
        excess = torch.cov(z.T) - torch.eye(6)
        assert (excess.abs() < 4 * (1 + torch.eye(6)).sqrt() / math.sqrt(20_000)).all()
        assert (z**3).mean().abs() < 4 * math.sqrt(15 / 120_000)


def test_evaluations_and_reports():
    own = model()
    own.sample(4, ti.nn.HeunEDM(18))
    assert own.report.nfev == 35
    own.sample(4, ti.nn.DPMSolverMultistep(11))
    assert own.report.nfev == 11
    assert str(own.report) == "sample: 4/4 arrived, steps up to 10 accepted and 0 rejected, 11 evaluations"
    own.sample(4, ti.nn.PredictorCorrector(10, corrections=2))
    assert own.report.nfev == 28
    own.sample(4, ti.nn.ReverseSDE(ti.sde.EulerMaruyama(dt=0.5)))
    assert own.report.reached.tolist() == pytest.approx([0.002] * 4)
    assert own.sample(0).shape == (0, 3)


def test_too_few_steps_are_told():
    own = model()
    with pytest.warns(ti.ConvergenceWarning, match="(?s)3 of 3 samples did not reach the least .*max_steps"):
        x = own.sample(3, ti.nn.ProbabilityFlow(ti.Tsit5(max_steps=2)))
    assert x.isfinite().all()
    assert (own.report.reached > 1).all()


@pytest.mark.parametrize("kind", ODES)
@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 2.0}, {"rho": 0}, {"rho": "even"}])
def test_bad_grids(kind, options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{kind.__name__}\({name}="):
        kind(**options)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ti.nn.HeunEDM(churn=-1), ValueError, r"HeunEDM\(churn=-1\)"),
        (lambda: ti.nn.PredictorCorrector(corrections=-1), ValueError, r"PredictorCorrector\(corrections=-1\)"),
        (lambda: ti.nn.PredictorCorrector(snr=1.0), ValueError, r"PredictorCorrector\(snr=1.0\)"),
        (lambda: ti.nn.ProbabilityFlow(ti.Tsit5), TypeError, r"ProbabilityFlow\(solver\): got .*try Tsit5\(\)"),
        (lambda: ti.nn.ReverseSDE(ti.Tsit5()), TypeError, r"ReverseSDE\(solver\): got Tsit5.*SRA1"),
    ],
)
def test_bad_samplers(make, error, words):
    with pytest.raises(error, match=words):
        make()

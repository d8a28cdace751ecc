"""Continuous normalising flows: densities, samples, traces, gradients."""

import math

import pytest
import torch
from torch import nn

import torchimplicit as ti

FINE = ti.Tsit5(rtol=1e-8, atol=1e-10)
ADJOINTS = [ti.Checkpointed(), ti.Direct(), ti.ode.Backsolve()]


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Field(nn.Module):
    """A small field of time, state and perhaps context."""

    def __init__(self, size=2, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(size + 1, width).double(), nn.Linear(width, size).double()

    def forward(self, t, z, context=None):
        hidden = self.first(torch.cat((z, t.expand(len(z), 1)), 1))
        return self.last(torch.tanh(hidden if context is None else hidden + context))


def normal(z, covariance):
    return torch.distributions.MultivariateNormal(z.new_zeros(z.shape[1]), covariance).log_prob(z)


@pytest.mark.parametrize("ts", [(0.0, 1.5), (1.5, 0.0)])
def test_a_linear_flow_has_a_normal_density(ts):
    A, x = 0.5 * double(3, 3), double(5, 3, seed=1)
    flow = ti.nn.CNF(lambda z: z @ A.T, 3, ts, autonomous=True, solver=FINE)
    M = torch.matrix_exp((ts[1] - ts[0]) * A)
    assert torch.allclose(flow.log_prob(x), normal(x, M @ M.T), rtol=1e-7)
    assert torch.allclose(flow(x), flow.log_prob(x))
    assert flow.report.converged


def test_the_density_integrates_to_one_as_well_as_the_tolerance():
    x = torch.linspace(-12, 12, 2001, dtype=torch.float64).unsqueeze(1)
    tolerances, densities = (1e-2, 1e-5, 1e-8), []
    for rtol in tolerances:
        flow = ti.nn.CNF(Field(1), 1, solver=ti.Tsit5(rtol=rtol, atol=rtol))
        with torch.no_grad():
            densities.append(flow.log_prob(x).exp())
        assert abs(torch.trapezoid(densities[-1], x.squeeze(1)).item() - 1) < rtol
    loose, middle, fine = densities  # an integral may be right by luck, its errors against each other
    for density, rtol in ((loose, 1e-2), (middle, 1e-5)):
        assert 1e-8 < float((density - fine).abs().max()) < rtol


@pytest.mark.parametrize("probe", ["gaussian", "rademacher"])
def test_hutchinsons_estimate_is_unbiased(probe):
    x = double(1, 3).expand(20_000, 3)
    field = Field(3)
    exact = ti.nn.CNF(field, 3, solver=ti.RK4())
    estimate = ti.nn.CNF(field, 3, trace="hutchinson", probe=probe, solver=ti.RK4())
    torch.manual_seed(0)
    with torch.no_grad():
        found, expected = estimate.log_prob(x), exact.log_prob(x[:1])
    assert found.std() > 0
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(x))


def test_the_flow_is_invertible_and_its_samples_have_its_density():
    flow, x = ti.nn.CNF(Field(), 2, solver=FINE), double(6, 2)
    back = flow.transport(x, flow.ts.flip(0))[-1]
    assert torch.allclose(flow.transport(back, flow.ts)[-1], x, atol=1e-7)
    assert flow.transport(x, torch.linspace(0, 1, 4).double()).shape == (4, 6, 2)
    torch.manual_seed(1)
    linear = ti.nn.CNF(lambda z: 0.5 * z, 1, autonomous=True, base=None)
    samples = linear.sample(20_000)
    assert samples.std().item() == pytest.approx(math.exp(0.5), rel=0.03)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_gradients_against_finite_differences(trace, adjoint):
    field, x, context = Field(), double(2, 2).requires_grad_(), double(2, 4, seed=2).requires_grad_()
    solver = FINE if isinstance(adjoint, ti.ode.Backsolve) else ti.RK4(dt=0.5)
    flow = ti.nn.CNF(field, 2, trace=trace, solver=solver, adjoint=adjoint)
    names, weights = zip(*flow.named_parameters(), strict=True)

    def run(x, context, *weights):
        torch.manual_seed(0)
        return torch.func.functional_call(flow, dict(zip(names, weights, strict=True)), (x, context))

    loose = {"atol": 1e-5, "rtol": 1e-4} if isinstance(adjoint, ti.ode.Backsolve) else {}
    assert torch.autograd.gradcheck(run, (x, context, *weights), **loose)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_second_derivatives_and_transforms(trace):
    flow, x = ti.nn.CNF(Field(), 2, trace=trace, solver=ti.RK4()), double(3, 2)

    def run(x):
        torch.manual_seed(0)
        return flow.log_prob(x)

    assert torch.autograd.gradgradcheck(run, (x.clone().requires_grad_(),))
    forward, reverse = torch.func.jacfwd(run, randomness="same")(x), torch.func.jacrev(run)(x)
    assert torch.allclose(forward, reverse)
    if trace == "exact":
        assert torch.allclose(torch.vmap(run)(torch.stack((x, -x)))[1], run(-x))


def test_the_probe_is_one_for_a_solve_and_another_for_the_next():
    field, x = Field(), double(3, 2)
    flow = ti.nn.CNF(field, 2, trace="hutchinson", solver=FINE)
    torch.manual_seed(0)
    first, second = flow.log_prob(x), flow.log_prob(x)
    assert not torch.equal(first, second)
    assert int(flow.report.rejected.max()) <= 2  # noise within a solve would have every step rejected


def test_samples_are_differentiable():
    base = torch.distributions.Independent(torch.distributions.Normal(torch.ones(2).double(), 0.1), 1)
    flow = ti.nn.CNF(Field(), 2, base=base)
    context = torch.zeros(7, 4, dtype=torch.float64, requires_grad=True)
    samples = flow.sample(7, context)
    assert samples.shape == (7, 2)
    samples.sum().backward()
    assert context.grad.abs().sum() > 0
    assert flow.field.first.weight.grad.abs().sum() > 0


def test_a_base_of_its_own_is_learned():
    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def log_prob(self, z):
            return -(z - self.mean).square().sum(1)

        def sample(self, shape):
            return self.mean + torch.randn(*shape, 2, dtype=torch.float64)

    flow = ti.nn.CNF(Field(), 2, base=Base())
    flow.log_prob(double(3, 2)).sum().backward()
    assert flow.base.mean.grad.abs().sum() > 0
    assert flow.sample(3).shape == (3, 2)


def test_penalties_of_the_paths():
    field, x = Field(), double(5, 2)
    penalties = (ti.nn.KineticEnergy(), ti.nn.JacobianFrobenius(probe="rademacher"))
    watched = ti.nn.CNF(field, 2, trace="hutchinson", penalties=penalties, solver=FINE)
    torch.manual_seed(0)
    found = watched.log_prob(x)
    steps = watched.report.steps
    torch.manual_seed(0)
    plain = ti.nn.CNF(field, 2, trace="hutchinson", solver=FINE)
    assert torch.allclose(plain.log_prob(x), found, rtol=1e-9)
    assert torch.equal(plain.report.steps, steps)
    back = ti.nn.NeuralODE(field, ts=(1.0, 0.0), solver=FINE, penalties=ti.nn.KineticEnergy())
    back(x)
    assert torch.allclose(watched.penalties[0], -back.penalties[0], rtol=1e-6)
    assert all((penalty > 0).all() for penalty in watched.penalties)


def test_images():
    field = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1)).double()
    flow = ti.nn.CNF(field, (1, 3, 3), autonomous=True)
    x = double(2, 1, 3, 3)
    basis = torch.eye(9, dtype=torch.float64).view(9, 1, 3, 3)
    assert flow.log_prob(x).shape == (2,)
    jacobian = torch.func.jacrev(lambda x: flow.transport(x[None], flow.ts.flip(0))[-1].flatten())(x[0]).reshape(9, 9)
    origin = flow.transport(x[:1], flow.ts.flip(0))[-1]
    expected = -0.5 * (origin.square().sum() + 9 * math.log(2 * math.pi)) + torch.linalg.slogdet(jacobian)[1]
    assert torch.allclose(flow.log_prob(x)[0], expected, rtol=1e-4)
    assert flow.sample(2).shape == basis[:2].shape


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shape": 0}, ValueError, "the shape of one sample"),
        ({"trace": "sum"}, ValueError, "'exact' or 'hutchinson'"),
        ({"probe": "uniform"}, ValueError, "'gaussian' or 'rademacher'"),
        ({"base": 3}, TypeError, "expected something with log_prob"),
        ({"base": torch.distributions.Normal(torch.zeros(2), 1.0)}, ValueError, "Independent"),
        ({"trace": "hutchinson", "penalties": ti.nn.JacobianFrobenius()}, ValueError, "as the flow's own"),
    ],
)
def test_mistakes_are_refused_at_construction(options, error, words):
    with pytest.raises(error, match=words):
        ti.nn.CNF(Field(), **{"shape": 2, **options})


def test_samples_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected samples of shape \(B, 2\)"):
        ti.nn.CNF(Field(), 2).log_prob(double(3, 4))


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_transforms_of_transforms_of_a_log_density(trace):
    """Per-sample scores, Hessians and gradients of parameters; the solve runs backward in time."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    flow = ti.nn.CNF(net, 2, autonomous=True, trace=trace, penalties=(ti.nn.KineticEnergy(),))
    x, random = torch.randn(3, 2, dtype=torch.float64), {"randomness": "same"}

    def one(x, parameters=None):
        return torch.func.functional_call(flow, parameters or {}, (x[None],)).sum()

    def probe():
        torch.manual_seed(1)  # one probe for all of them

    probe()
    scores = torch.vmap(torch.func.grad(one), **random)(x)
    probe()
    hessians = torch.vmap(torch.func.jacfwd(torch.func.grad(one), **random), **random)(x)
    parameters = dict(flow.named_parameters())
    probe()
    per_sample = torch.vmap(torch.func.grad(one, 1), (0, None), **random)(x, parameters)
    for i in range(3):
        leaf = x[i].clone().requires_grad_()
        probe()
        value = one(leaf)
        (score,) = torch.autograd.grad(value, leaf, create_graph=True)
        assert torch.allclose(scores[i], score, atol=1e-12)
        rows = [torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in score]
        assert torch.allclose(hessians[i], torch.stack(rows), atol=1e-10)
        grads = torch.autograd.grad(value, list(parameters.values()))
        for mapped, grad in zip(per_sample.values(), grads, strict=True):
            assert torch.allclose(mapped[i], grad, atol=1e-12)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_stiff_solver_finds_the_same_density(trace):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, found = torch.randn(3, 2, dtype=torch.float64), []
    for solver in (ti.Tsit5(rtol=1e-9, atol=1e-9), ti.ESDIRK54(rtol=1e-7, atol=1e-8)):
        flow = ti.nn.CNF(net, 2, autonomous=True, trace=trace, solver=solver, penalties=(ti.nn.KineticEnergy(),))
        torch.manual_seed(1)
        value = flow.log_prob(x)
        grad = torch.autograd.grad(value.sum() + flow.penalties[0].sum(), net[0].weight)[0]
        torch.manual_seed(1)
        found.append((value, grad, flow.sample(4)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_flow_has_no_pair_for_a_symplectic_solver():
    flow = ti.nn.CNF(nn.Linear(2, 2), 2, autonomous=True, solver=ti.Leapfrog(dt=0.1))
    with pytest.raises(ValueError, match=r"Leapfrog: got a state of .*expected a pair \(q, p\)"):
        flow.log_prob(torch.randn(3, 2))


def test_a_flow_warns_of_batch_norm():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.warns(UserWarning, match=r"CNF: the field's '1' is a BatchNorm1d.*densities then depend.*GroupNorm"):
        ti.nn.CNF(net, 2, autonomous=True)
    ti.nn.CNF(net.eval(), 2, autonomous=True)  # an affine map

"""The layer of a neural SDE: fresh noise, repeated noise, a prior, options, copies."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import sde

D = torch.float64
EULER = sde.EulerMaruyama(dt=0.25)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def network(inputs=2, outputs=2, width=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def layer(**options):
    options = {"solver": EULER, "autonomous": True} | options
    return ti.nn.NeuralSDE(network(), network(seed=1), **options)


class Pull(nn.Module):
    """A drift to a level."""

    def __init__(self, rate, level=0.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=D))
        self.level = level

    def forward(self, t, y):
        return self.rate * (self.level - y)


class Size(nn.Module):
    """Noise of one size."""

    def __init__(self, size):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(size, dtype=D))

    def forward(self, t, y):
        return self.size.expand_as(y)


def test_ornstein_and_uhlenbeck_in_mean_and_variance():
    own = ti.nn.NeuralSDE(Pull(1.0), Size(0.5), solver=sde.SRA1(dt=0.1), noise="additive")
    torch.manual_seed(0)
    end = own(torch.ones(20_000, 1, dtype=D))
    variance = 0.125 * (1 - math.exp(-2))
    assert abs(end.mean() - math.exp(-1)) < 4 * math.sqrt(variance / 20_000)
    assert abs(end.var() - variance) < 4 * variance * math.sqrt(2 / 20_000)
    assert own.report.converged
    assert own.report.strong_order == 1.5


@pytest.mark.parametrize("training", [True, False])
def test_noise_is_fresh_and_can_be_repeated(training):
    own, y = layer().train(training), double(3, 2)
    torch.manual_seed(5)
    one, other = own(y), own(y)
    assert not torch.equal(one, other)
    assert torch.equal(own(y, brownian=own.report.seed), other)
    torch.manual_seed(5)
    assert torch.equal(own(y), one)
    seeds = torch.tensor([4, 4, 7])
    same = own(y[:1].expand(3, 2), brownian=seeds)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    source = sde.Brownian(seed=4)
    assert torch.equal(own(y, brownian=source), own(y, brownian=4))


def test_eval_changes_no_gradient():
    own, y = layer(), double(3, 2)
    found = [torch.autograd.grad(own.train(mode)(y, brownian=1).sum(), [*own.parameters()]) for mode in (True, False)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_ranks_that_are_seeded_alike_draw_differently(monkeypatch):
    own, y = layer(), double(3, 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        found.append(own(y))
    assert not torch.equal(*found)


def test_the_layer_is_sdeint():
    own, y = layer(output="all", ts=torch.linspace(0, 1, 3, dtype=D)), double(3, 2)
    with torch.no_grad():
        sol = ti.sdeint(lambda t, y: own.drift(y), lambda t, y: own.diffusion(y), y, own.ts, solver=EULER, brownian=3)
        assert torch.equal(own(y, brownian=3), sol.value)
    later = torch.linspace(0, 2, 5, dtype=D)
    assert own(y, ts=later).shape == (5, 3, 2)
    assert own(y, ts=later[:, None].expand(5, 3)).shape == (5, 3, 2)


def test_further_arguments_reach_every_function():
    x = double(3, 2, seed=1).requires_grad_()
    own = ti.nn.NeuralSDE(
        lambda t, y, x: x - y, lambda t, y, x: 0.1 * x.cos(), solver=EULER, prior=lambda t, y, x: -y, batched_args=[0]
    )
    own(double(3, 2), x, brownian=1)
    expected = 0.5 * (x / (0.1 * x.cos())).square().sum(1)
    assert torch.allclose(own.kl, expected, rtol=1e-10)
    own.kl.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.norm() > 0


def test_nested_states():
    own = ti.nn.NeuralSDE(
        lambda t, y: {"q": y["p"], "p": -y["q"]},
        lambda t, y: {"q": 0.1 * torch.ones_like(y["q"]), "p": 0.2 * y["p"]},
        solver=EULER,
    )
    end = own({"q": double(4, 2), "p": double(4, 2, seed=1)})
    assert {name: leaf.shape for name, leaf in end.items()} == {"q": (4, 2), "p": (4, 2)}


@pytest.mark.parametrize("output", ["last", "all"])
def test_a_latent_equation(output):
    """Ornstein and Uhlenbeck's against another one: the divergence by hand, from a start of zero."""
    own = ti.nn.NeuralSDE(
        Pull(2.0, 0.3), Size(0.5), torch.linspace(0, 1, 3, dtype=D), sde.SRA1(dt=0.05), noise="additive",
        prior=Pull(1.0), output=output,
    )  # fmt: skip
    own(torch.zeros(4000, 1, dtype=D), brownian=1)
    assert own.kl.shape == ((3, 4000) if output == "all" else (4000,))
    kl = own.kl[-1] if output == "all" else own.kl
    assert abs(kl.mean() - 0.474) < 4 * kl.std() / math.sqrt(4000) + 0.005
    kl.mean().backward()
    assert all(parameter.grad is not None for parameter in own.parameters())
    assert own.prior.rate.grad.abs() > 0
    kept = copy.deepcopy(own)
    assert torch.equal(kept.kl, own.kl)
    assert not kept.kl.requires_grad


def test_learned_times():
    times = nn.Parameter(torch.tensor([0.0, 1.0], dtype=D))
    own = layer(ts=times)
    own(double(3, 2)).sum().backward()
    assert times.grad.norm() > 0
    assert any(parameter is times for parameter in own.parameters())


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
def test_gradients_of_value_and_divergence(adjoint):
    own = ti.nn.NeuralSDE(
        network(width=3), nn.Sequential(network(width=3, seed=1), nn.Sigmoid()), solver=sde.EulerMaruyama(dt=0.5),
        adjoint=adjoint, prior=network(width=3, seed=2), autonomous=True,
    )  # fmt: skip
    names, weights = zip(*own.named_parameters(), strict=True)

    def run(y, *weights):
        value = torch.func.functional_call(own, dict(zip(names, weights, strict=True)), (y,), {"brownian": 2})
        return value, own.kl

    assert torch.autograd.gradcheck(run, (double(2, 2).requires_grad_(), *weights))


def test_functional_gradients():
    own, y = layer(), double(3, 2)
    parameters = dict(own.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(own, parameters, (y,), {"brownian": 2}).square().sum()

    found = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), [*parameters.values()])
    for one, other in zip(found.values(), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_copies_after_use(copied):
    own, y = layer(prior=network(seed=2)), double(3, 2)
    value = own(y)
    other = copied(own)
    assert torch.equal(other(y, brownian=own.report.seed), value)
    assert other.report.seed == own.report.seed


def test_a_state_dict_holds_the_functions_and_nothing_else():
    own, other = layer(prior=network(seed=2)), layer(prior=network(seed=5))
    own(double(3, 2))
    assert {name.split(".")[0] for name in own.state_dict()} == {"drift", "diffusion", "prior"}
    other.load_state_dict(own.state_dict())
    y = double(3, 2)
    assert torch.equal(own(y, brownian=1), other(y, brownian=1))


def test_the_report_says_that_a_network_sees_other_unknowns():
    own = layer()
    own(double(3, 2), brownian=1)
    assert own.report.strong_order == 0.5
    milstein = layer(solver=sde.Milstein(dt=0.25))
    milstein(double(3, 2), brownian=1)
    assert "coefficients depend on other" in str(milstein.report)


def test_print():
    text = repr(layer())
    for word in ("drift", "diffusion", "ts=[0.0, 1.0]", "EulerMaruyama(", "dt=0.25", "'diagonal'", "'ito'", "'warn'"):
        assert word in text


def test_failures_warn_raise_or_are_counted():
    def explode(y):
        return y**3

    y, small = torch.tensor([[0.1], [40.0]], dtype=D), lambda y: 0.01 * y
    options = {"autonomous": True, "solver": sde.EulerMaruyama(dt=0.01), "ts": (0.0, 2.0)}
    with pytest.warns(ti.ConvergenceWarning, match="NeuralSDE of explode"):
        end = ti.nn.NeuralSDE(explode, small, **options)(y, brownian=1)
    assert end.isfinite().all()
    own = ti.nn.NeuralSDE(explode, small, on_failure="raise", **options)
    with pytest.raises(ti.ConvergenceError):
        own(y, brownian=1)
    assert own.report.failed.tolist() == [1]


def test_batch_norm_is_warned_of():
    coupled = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.warns(UserWarning, match="NeuralSDE: the diffusion's '1' is a BatchNorm1d"):
        ti.nn.NeuralSDE(network(), coupled, autonomous=True)


def test_plain_dropout_is_warned_of_and_what_helps():
    def dropping(dropout):
        return nn.Sequential(network(), dropout)

    for kind in (nn.Dropout(0.5), nn.AlphaDropout(0.5)):
        with pytest.warns(UserWarning, match=f"NeuralSDE: the drift's '1' is a {type(kind).__name__}.*Try ti.nn.Var"):
            ti.nn.NeuralSDE(dropping(kind), network(), autonomous=True)
        with pytest.warns(UserWarning, match="NeuralODE: the field's '1' is a"):
            ti.nn.NeuralODE(dropping(kind), autonomous=True)
    ti.nn.NeuralSDE(dropping(nn.Dropout(0.5)).eval(), network(), autonomous=True)
    found = []
    for adjoint in (ti.Checkpointed(), ti.Direct()):
        drift = dropping(ti.nn.VariationalDropout(0.5))
        own = ti.nn.NeuralSDE(drift, network(seed=1), autonomous=True, solver=EULER, adjoint=adjoint)
        torch.manual_seed(3)
        found.append(torch.autograd.grad(own(double(3, 2)).sum(), [*own.parameters()]))
    assert all(torch.allclose(one, other, rtol=1e-10) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: layer(autonomous=False), TypeError, r"drift=Sequential.*expected drift\(t, y, ...\).*autonomous=True"),
        (lambda: ti.nn.NeuralSDE(lambda t, y: y, 0.1), TypeError, r"NeuralSDE\(diffusion=...\): got a float"),
        (lambda: layer(prior=3), TypeError, r"NeuralSDE\(prior=...\): got a int"),
        (lambda: layer(ts=(1.0,)), ValueError, "at least two finite times"),
        (lambda: layer(ts=(1.0, 0.0)), ValueError, r"got decreasing times, .*try ts.flip\(0\)"),
        (lambda: layer(solver=ti.Tsit5()), TypeError, "EulerMaruyama"),
        (lambda: layer(solver=sde.Heun(dt=0.1)), ValueError, "converges to the 'stratonovich' process"),
        (lambda: layer(solver=sde.SRA1(dt=0.1)), ValueError, "noise: got 'diagonal' with SRA1"),
        (lambda: layer(adjoint=ti.Backsolve()), ValueError, "adjoint: got Backsolve"),
        (lambda: layer(noise="white"), ValueError, "noise: got 'white'"),
        (lambda: layer(kl="exact"), ValueError, "kl: got 'exact'"),
        (lambda: layer(output="first"), ValueError, "expected 'last' or 'all'"),
        (lambda: layer(on_failure="shrug"), ValueError, "on_failure"),
    ],
)
def test_mistakes_are_refused_at_construction(make, error, words):
    with pytest.raises(error, match=words):
        make()

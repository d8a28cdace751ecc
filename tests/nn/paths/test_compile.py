"""Layers of paths whose steps are compiled: the plain path, nothing compiled twice, refusals."""

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import sde
from torchimplicit.core.compiled import kernel

D = torch.float64


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    monkeypatch.setattr(kernel, "BACKEND", "aot_eager")


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def ordinary(compile):
    layer = ti.nn.NeuralODE(network(0), autonomous=True, compile=compile)
    return layer, lambda y0: layer(y0)


def stochastic(compile):
    solver = sde.EulerMaruyama(dt=0.1)
    layer = ti.nn.NeuralSDE(network(0), network(1), solver=solver, autonomous=True, compile=compile)
    return layer, lambda y0: layer(y0, brownian=3)


class Control(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2 + 5, 2)

    def forward(self, z, context):
        return self.net(torch.cat((z, context), 1))


def latent(compile):
    torch.manual_seed(0)
    parts = ti.nn.GRUEncoder(2, 2, 4), network(0), nn.Sequential(network(1), nn.Sigmoid()), Control(), network(2)
    solver, ts = sde.EulerMaruyama(dt=0.2), torch.tensor([0.0, 0.5, 1.0], dtype=D)
    layer = ti.nn.LatentSDE(*parts, solver=solver, autonomous=True, compile=compile).double()
    return layer, lambda y0: layer.elbo(ti.nn.Series.of([(ts, torch.stack((row,) * 3)) for row in y0]), seed=3)


@pytest.mark.parametrize("made", [ordinary, stochastic, latent])
def test_a_layer_gives_the_plain_path_and_compiles_once(made):
    y0 = torch.linspace(-1, 1, 6, dtype=D).view(3, 2)
    (plain, expected), (fused, got) = made(False), made(True)
    assert torch.allclose(got(y0), expected(y0), rtol=0, atol=1e-12)
    expected(y0).square().sum().backward()
    got(y0).square().sum().backward()
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    got(y0 + 1).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_what_cannot_be_compiled_is_refused_when_the_layer_is_made():
    with pytest.raises(ValueError, match="got penalties, expected the path alone"):
        ti.nn.NeuralODE(network(0), autonomous=True, penalties=(ti.nn.KineticEnergy(),), compile=True)
    with pytest.raises(ValueError, match="explicit adaptive solver"):
        ti.nn.NeuralODE(network(0), autonomous=True, solver=ti.RK4(dt=0.1), compile=True)
    heun = sde.Heun(rtol=1e-2)
    with pytest.raises(ValueError, match="chooses its steps"):
        ti.nn.NeuralSDE(network(0), network(1), solver=heun, calculus="stratonovich", autonomous=True, compile=True)
    with pytest.raises(ValueError, match="expected False, True or 'auto'"):
        ti.nn.NeuralSDE(network(0), network(1), autonomous=True, compile="yes")  # type: ignore[arg-type]
    parts = ti.nn.GRUEncoder(2, 2, 4), network(0), network(1), Control(), network(2)
    with pytest.raises(ValueError, match="chooses its steps"):
        ti.nn.LatentSDE(*parts, solver=heun, calculus="stratonovich", autonomous=True, compile=True)


def test_series_with_times_of_their_own_are_refused_or_go_on_without():
    series = ti.nn.Series.of([(torch.tensor([0.0, end], dtype=D), torch.ones(2, 2, dtype=D)) for end in (1.0, 2.0)])
    with pytest.raises(ValueError, match="got True with times of shape"):
        latent(True)[0].elbo(series)
    assert torch.equal(latent("auto")[0].elbo(series, seed=1), latent(False)[0].elbo(series, seed=1))

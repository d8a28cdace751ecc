"""One process in both calculi."""

import pytest
import torch

import torchimplicit as ti
from tests.sde.cases import D
from torchimplicit import sde

A = torch.tensor([[0.0, 0.4, 0.1], [-0.2, 0.1, 0.3], [0.0, -0.3, 0.2]], dtype=D)
NOISE = {
    "diagonal": lambda t, y: 0.5 * y.sin() + 0.3,
    "scalar": lambda t, y: (y @ A.T).unsqueeze(-1),
    "general": lambda t, y: torch.stack((y @ A.T, y @ A), -1),
}


def drift(t, y):
    return -y


@pytest.mark.parametrize("noise", NOISE)
def test_solvers_of_both_calculi_come_to_the_same_path(noise):
    g, y0 = NOISE[noise], torch.linspace(-1, 1, 600, dtype=D).reshape(200, 3)
    options = {"noise": noise, "brownian": sde.Brownian(seed=3, base=2.0**-6)}
    ts, gaps = torch.tensor([0.0, 1.0], dtype=D), []
    for dt in (2.0**-6, 2.0**-10):
        ito = ti.sdeint(drift, g, y0, ts, solver=sde.EulerMaruyama(dt=dt), **options).value
        converted = sde.to_stratonovich(drift, g, noise)
        other = ti.sdeint(converted, g, y0, ts, calculus="stratonovich", solver=sde.Heun(dt=dt), **options).value
        back = ti.sdeint(sde.to_ito(converted, g, noise), g, y0, ts, solver=sde.EulerMaruyama(dt=dt), **options).value
        assert torch.allclose(back, ito, atol=1e-13)
        gaps.append((ito - other)[-1].square().mean().sqrt().item())
    assert gaps[1] < 0.3 * gaps[0]  # as 2^-4 to the power of 1/2
    assert gaps[1] < 5e-3


def test_additive_noise_is_the_same_in_both():
    g = lambda t, y: torch.ones_like(y)  # noqa: E731
    assert torch.equal(sde.to_ito(drift, g, "additive")(0, torch.ones(2, 3)), -torch.ones(2, 3))
    ts = torch.tensor([0.0, 1.0], dtype=D)
    for solver in (sde.EulerMaruyama(dt=0.1), sde.Heun(dt=0.1)):
        one, other = (
            ti.sdeint(drift, g, torch.ones(2, 3, dtype=D), ts, noise="additive", solver=solver, brownian=1,
                      calculus=word).value for word in ("ito", "stratonovich")
        )  # fmt: skip
        assert torch.equal(one, other)


def test_states_in_nests_and_gradients():
    net = torch.nn.Linear(3, 3, dtype=D)

    class Noise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return {"a": self.net(y["a"]).unsqueeze(-1)}

    noise = Noise()
    grads = []
    for adjoint in (ti.Direct(), ti.Checkpointed()):
        sol = ti.sdeint(
            sde.to_stratonovich(lambda t, y: {"a": -y["a"]}, noise, "scalar"), noise, {"a": torch.ones(2, 3, dtype=D)},
            torch.tensor([0.0, 1.0], dtype=D), noise="scalar", calculus="stratonovich", solver=sde.Heun(dt=0.25),
            brownian=1, adjoint=adjoint,
        )  # fmt: skip
        grads.append(torch.autograd.grad(sol.value["a"].square().sum(), net.weight)[0])
    assert torch.allclose(*grads, rtol=1e-10)


def test_refusals():
    with pytest.raises(ValueError, match=r"another unknown than its own.*torch.diag_embed"):
        sde.to_ito(drift, lambda t, y: y.roll(2, 1))(0, torch.rand(2, 5, dtype=D))
    with pytest.raises(ValueError, match="noise: got 'white'"):
        sde.to_ito(drift, drift, "white")
    with pytest.raises(TypeError, match="diffusion: got a float"):
        sde.to_ito(drift, 0.1)

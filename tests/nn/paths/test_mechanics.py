"""Fields of Hamiltonians and Lagrangians."""

import pytest
import torch
from torch import nn

import torchimplicit as ti

ADJOINTS = [ti.Checkpointed(), ti.Direct(), ti.ode.Backsolve()]


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()


def pendulum(y):
    return y[:, 1] ** 2 / 2 - torch.cos(y[:, 0])


class Massive(nn.Module):
    """A Lagrangian that is regular: `|v|^2` and a network of small weight."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, y):
        return y[:, 1:].square() + 0.1 * self.network(y)


def test_the_slope_of_a_pendulum():
    y = double(5, 2)
    slope = ti.nn.HamiltonianNet(pendulum)(torch.zeros(5, 1), y)
    assert torch.allclose(slope, torch.stack((y[:, 1], -torch.sin(y[:, 0])), 1))
    same = ti.nn.LagrangianNet(lambda y: y[:, 1] ** 2 / 2 + torch.cos(y[:, 0]))(torch.zeros(5, 1), y)
    assert torch.allclose(same, slope)


@pytest.mark.parametrize("lagrangian", [False, True])
def test_energy_drifts_with_the_tolerance(lagrangian):
    field = ti.nn.HamiltonianNet(pendulum)
    if lagrangian:
        field = ti.nn.LagrangianNet(lambda y: y[:, 1] ** 2 / 2 + torch.cos(y[:, 0]))
    start, ts, drifts = double(3, 2), torch.linspace(0, 10, 5, dtype=torch.float64), []
    assert torch.allclose(field.energy(start), pendulum(start))
    for rtol in (1e-5, 1e-7, 1e-9):
        value = ti.odeint(field, start, ts, solver=ti.Tsit5(rtol=rtol, atol=rtol)).value
        drifts.append(max(float((field.energy(each) - pendulum(start)).abs().max()) for each in value))
    assert drifts[0] > drifts[1] > drifts[2]
    assert all(drift < 100 * rtol for drift, rtol in zip(drifts, (1e-5, 1e-7, 1e-9), strict=True))


def test_a_double_pendulum_and_its_energy():
    def lagrangian(y):
        a, b, v, w = y.unbind(1)
        kinetic = v**2 + w**2 / 2 + v * w * torch.cos(a - b)  # unit masses, lengths and gravity
        return kinetic + 2 * torch.cos(a) + torch.cos(b)

    field, start = ti.nn.LagrangianNet(lagrangian), double(3, 4)
    mass = field.mass(start)
    coupling = torch.cos(start[:, 0] - start[:, 1])
    expected = torch.stack((2 + 0 * coupling, coupling, coupling, 1 + 0 * coupling), 1).view(3, 2, 2)
    assert torch.allclose(mass, expected)
    end = ti.odeint(field, start, torch.tensor([0.0, 5.0]).double(), solver=ti.Tsit5(rtol=1e-9, atol=1e-9)).value[-1]
    assert (end - start).abs().max() > 0.5
    assert torch.allclose(field.energy(end), field.energy(start), atol=1e-6)


@pytest.mark.parametrize("make", [lambda: ti.nn.HamiltonianNet(network()), lambda: ti.nn.LagrangianNet(Massive())])
def test_every_adjoint_gives_the_same_gradient(make):
    field, found = make(), []
    for adjoint in ADJOINTS:
        start = double(3, 2).requires_grad_()
        solver = ti.Tsit5(rtol=1e-8, atol=1e-9)
        value = ti.odeint(field, start, torch.tensor([0.0, 1.0]).double(), solver=solver, adjoint=adjoint).value[-1]
        weights = [weight for name, weight in field.named_parameters() if not name.endswith("2.bias")]
        found.append(torch.autograd.grad(value.square().sum(), (start, *weights)))
    for checkpointed, direct, backsolve in zip(*found, strict=True):
        assert torch.allclose(checkpointed, direct, rtol=1e-9, atol=1e-12)
        assert torch.allclose(checkpointed, backsolve, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: ti.nn.HamiltonianNet(network()), lambda: ti.nn.LagrangianNet(Massive())])
def test_second_derivatives_and_transforms(make):
    field, ts = make(), torch.tensor([0.0, 0.5], dtype=torch.float64)

    def run(y):
        return ti.odeint(field, y, ts, solver=ti.RK4()).value[-1]

    y = double(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(run, (y,))
    assert torch.autograd.gradgradcheck(run, (y,))
    many = torch.vmap(run)(torch.stack((y, -y)))
    assert torch.allclose(many[1], run(-y))
    assert torch.allclose(torch.func.jacfwd(run)(y.detach()), torch.func.jacrev(run)(y.detach()))


def test_a_singular_mass_matrix_is_reported_and_alone():
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    field = ti.nn.LagrangianNet(lambda y: y[:, 1] ** 4 - y[:, 0] ** 2)  # its mass is 12 v^2
    solution = ti.odeint(field, y, torch.tensor([0.0, 0.01]).double(), on_failure="ignore")
    assert solution.status.tolist() == [int(ti.Status.NON_FINITE), 0]
    assert torch.equal(solution.value[-1, 0], y[0])


def test_mistakes():
    with pytest.raises(TypeError, match="expected a module or function"):
        ti.nn.HamiltonianNet(3)
    with pytest.raises(ValueError, match="positions and velocities"):
        ti.nn.LagrangianNet(pendulum)(None, double(2, 3))
    with pytest.raises(ValueError, match="one number per sample"):
        ti.nn.HamiltonianNet(lambda y: y)(None, double(2, 4))

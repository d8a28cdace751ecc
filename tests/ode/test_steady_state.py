"""Steady states as fixed points and roots."""

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.testing import check_adjoint, check_solver

TIGHT = ti.SteadyState(rtol=1e-13, atol=1e-13)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tanh(z, W, x):
    return torch.tanh(z @ W + x)


@pytest.mark.parametrize("inner", [ti.Tsit5(), ti.Heun(rtol=0.1, atol=0.1)], ids=["Tsit5", "Heun"])
def test_the_contract_of_solvers(inner):
    check_solver(ti.SteadyState(solver=inner))


@pytest.mark.parametrize("adjoint", [ti.Implicit(ti.LU()), ti.Unrolled()], ids=str)
def test_adjoints(adjoint):
    check_adjoint(adjoint, TIGHT, second=isinstance(adjoint, ti.Implicit))


def test_a_flow_goes_to_the_stable_root_that_newton_leaps_over():
    start = torch.tensor([[0.55]], dtype=torch.float64)
    cubic = {"g": lambda z: z**3 - z, "z0": start}
    assert ti.root(**cubic, solver=ti.SteadyState(rtol=1e-10)).value.item() == pytest.approx(1.0)
    assert ti.root(**cubic, solver=ti.Newton(halvings=0, rtol=1e-8)).value.item() == pytest.approx(-1.0)


def test_a_root_that_the_flow_leaves_is_no_answer():
    solution = ti.root(lambda z: -z, double(3, 2), solver=ti.SteadyState(), on_failure="ignore")
    assert (solution.status != int(ti.Status.CONVERGED)).all()


def test_each_sample_has_its_own_steps():
    rate = torch.tensor([[0.01], [1.0], [100.0]], dtype=torch.float64)
    together = ti.root(lambda z, rate: rate * (z - 1), torch.zeros_like(rate), rate, solver=ti.SteadyState(rtol=1e-8))
    assert torch.allclose(together.value, torch.ones_like(rate), atol=1e-4)
    for i in range(3):
        alone = ti.root(lambda z, rate: rate * (z - 1), rate[[i]] * 0, rate[[i]], solver=ti.SteadyState(rtol=1e-8))
        assert alone.steps[0] == together.steps[i]
        assert torch.equal(alone.value[0], together.value[i])


def test_tight_tolerances_are_reached_on_loose_paths():
    W, x = 0.4 * double(5, 5), double(8, 5, seed=1)
    loose = ti.SteadyState(rtol=1e-12, atol=1e-12, solver=ti.Bosh3(rtol=0.3, atol=0.3))
    solution = ti.fixed_point(tanh, torch.zeros_like(x), W, x, solver=loose)
    assert solution.report.residual.max() < 1e-11
    reference = ti.fixed_point(tanh, torch.zeros_like(x), W, x, solver=ti.Newton(rtol=1e-13, atol=1e-13))
    assert torch.allclose(solution.value, reference.value, atol=1e-10)


def test_options_change_the_run_or_are_refused():
    W, x = 0.4 * double(5, 5), double(8, 5, seed=1)
    steps = {
        dt0: int(
            ti.fixed_point(
                tanh, torch.zeros_like(x), W, x, solver=ti.SteadyState(solver=ti.Tsit5(rtol=1e-2, dt0=dt0))
            ).steps.max()
        )
        for dt0 in (1e-6, 0.5)
    }
    assert steps[1e-6] > steps[0.5]
    with pytest.raises(ValueError, match="expected an adaptive path solver"):
        ti.SteadyState(solver=ti.Euler(dt=0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PID"):
        ti.SteadyState(solver=ti.Tsit5(control=ti.PID(proportional=0.4, integral=0.3)))


def test_an_equilibrium_layer_learns_to_double():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))

        def forward(self, z, x):
            return self.layers(z + x)

    torch.manual_seed(0)
    layer = ti.nn.DEQ(Cell(), solver=ti.SteadyState(rtol=1e-5, atol=1e-5))
    x = torch.arange(1.0, 11.0).unsqueeze(1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        loss = nn.functional.mse_loss(layer(x), 2 * x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert layer(torch.tensor([[-5.0]])).item() == pytest.approx(-10, abs=0.1)

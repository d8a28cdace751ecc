"""Parts of the path family that meet: layers and copies, adjoints and fast fields, narrowing and dense output."""

import copy
import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti


@pytest.mark.parametrize("kind", ["layer", "flow"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_layer_can_be_copied_after_a_call_with_penalties(kind, how):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    options = {"autonomous": True, "penalties": (ti.nn.KineticEnergy(),)}
    module = ti.nn.NeuralODE(net, **options) if kind == "layer" else ti.nn.CNF(net, 2, **options)
    x = torch.randn(3, 2, dtype=torch.float64)
    value = module(x)
    copied = how(module)
    assert torch.equal(copied.penalties[0], module.penalties[0])
    assert module.penalties[0].requires_grad
    assert not copied.penalties[0].requires_grad
    assert torch.equal(copied(x), value)


def test_a_speed_whose_square_overflows_still_gets_a_first_step():
    span, rate = 1e-30, 1e30  # in single precision the norm of the first slope over the tolerance is infinite
    k = torch.tensor(1.0, requires_grad=True)
    times = torch.tensor([0.0, span])
    solver = ti.Tsit5(rtol=1e-4, atol=1e-6, max_steps=100)
    solution = ti.odeint(lambda t, y, k: -k * (rate * y), torch.ones(2, 3), times, k, solver=solver)
    torch.testing.assert_close(solution.value[-1], torch.full((2, 3), 0.36788), rtol=1e-3, atol=0.0)
    solution.value[-1, 0, 0].backward()
    assert k.grad is not None
    assert abs(float(k.grad) + 0.36788) < 1e-3


def lagging(t, y, rate):
    return torch.sin(t) - rate * y


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.Dopri8(rtol=1e-6)])
@pytest.mark.parametrize("fires", [False, True])
def test_dense_output_and_events_do_not_depend_on_narrowing_or_the_way_time_runs(solver, fires):
    batch = 8200  # above the size from which walks go on with fewer samples
    torch.manual_seed(0)
    start = torch.randn(batch, 2, dtype=torch.float64)
    last = torch.linspace(0.2, 2.0, batch, dtype=torch.float64)
    last = torch.where(torch.arange(batch) % 2 == 0, last, -0.5 * last)
    times = torch.stack((0 * last, last))
    looked_at = torch.stack((0 * last, 0.01 * last, 0.77 * last, last))
    event = ti.Event(lambda t, y, rate: y[:, 0] - 0.35) if fires else None
    found = []
    for batched in (None, (0,)):
        rate = torch.linspace(0.1, 2.0, batch, dtype=torch.float64).unsqueeze(1).requires_grad_()
        solution = ti.odeint(lagging, start, times, rate, solver=solver, batched_args=batched, dense=True, event=event)
        assert solution.path is not None
        path = solution.path(looked_at)
        (grad,) = torch.autograd.grad(path.square().sum() + solution.value.sum(), rate)
        found.append((solution.value, path, solution.path.derivative(looked_at), grad, solution.path.reached))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)

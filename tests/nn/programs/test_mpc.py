"""The planning layer: what it hands out, what it learns from, how it goes on."""

import copy
import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.optim import BoxDDP, ilqr


def cart(x, u):
    return torch.stack((x[:, 0] + 0.2 * x[:, 1], x[:, 1] + 0.2 * u[:, 0] - 0.05 * x[:, 1] ** 3), 1)


class Cost(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x, u):
        return x.square().sum(1) + self.weight * u.square().sum(1)

    def end(self, x):
        return 3 * x.square().sum(1)


X = torch.tensor([[1.0, 0.0], [-0.5, 0.4], [0.2, -1.0]], dtype=torch.float64)


def test_first_action_and_whole_plan():
    cost = Cost(0.3)
    first = ti.nn.MPC(cart, cost, 8, -0.6, 0.6, final_cost=cost.end)
    whole = ti.nn.MPC(cart, cost, 8, -0.6, 0.6, final_cost=cost.end, whole=True)
    plan = ilqr(cart, cost, X, 8, -0.6, 0.6, final_cost=cost.end)
    assert torch.equal(first(X), plan.value[:, 0])
    assert torch.equal(whole(X), plan.value)
    assert first.report.converged


def test_a_weight_is_recovered_from_actions():
    with torch.no_grad():
        expert = ti.nn.MPC(cart, Cost(0.3), 8, -0.6, 0.6, whole=True)(X)
    learner = ti.nn.MPC(cart, Cost(1.0), 8, -0.6, 0.6, whole=True)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.1, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.92)
    for _ in range(30):
        loss = (learner(X) - expert).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert learner.cost.weight.item() == pytest.approx(0.3, rel=0.02)


def test_arguments_and_sequences_are_handed_on():
    goals = torch.linspace(0, 1, 8, dtype=torch.float64)
    weight = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    layer = ti.nn.MPC(
        lambda x, u, weight, goal: cart(x, u),
        lambda x, u, weight, goal: (x[:, 0] - goal).square() + weight * u.square().sum(1),
        8,
        controls=1,
    )
    layer(X, weight, sequences=(goals,)).sum().backward()
    assert weight.grad.abs() > 1e-3


def test_a_warm_start_goes_on_from_the_last_plan():
    cost = Cost(0.3)
    layer = ti.nn.MPC(cart, cost, 12, -0.6, 0.6, final_cost=cost.end, warm_start=True, whole=True)
    cold = ti.nn.MPC(cart, cost, 12, -0.6, 0.6, final_cost=cost.end, whole=True)
    with torch.no_grad():
        actions = layer(X)
        x = cart(X, actions[:, 0])
        warm = layer(x)
        torch.testing.assert_close(warm, cold(x), rtol=0, atol=1e-6)
        assert layer.report.steps.sum() < cold.report.steps.sum()
        layer(x[:2])  # another batch starts anew
        assert layer.report.converged


def test_a_plan_that_fails_warns_and_is_reported():
    layer = ti.nn.MPC(cart, Cost(0.3), 8, -0.6, 0.6, solver=BoxDDP(max_steps=0))
    with pytest.warns(ti.ConvergenceWarning, match="max_steps"):
        layer(X)
    assert not layer.report.converged
    strict = ti.nn.MPC(cart, Cost(0.3), 8, -0.6, 0.6, solver=BoxDDP(max_steps=0), on_failure="raise")
    with pytest.raises(ti.ConvergenceError):
        strict(X)
    assert not strict.report.converged


def test_copies_and_buffers():
    layer = ti.nn.MPC(cart, Cost(0.3), 8, torch.tensor([-0.6]).double(), torch.tensor([0.6]).double())
    expected = layer(X)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(X), expected)
    assert layer.float()(X.float()).dtype == torch.float32


def test_bounds_can_be_learned():
    upper = nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
    layer = ti.nn.MPC(cart, Cost(0.3), 8, -0.1, upper)
    assert upper is dict(layer.named_parameters())["upper"]
    action = layer(-X)
    assert (action[0] - upper).abs() < 1e-9
    action[0].sum().backward()
    assert upper.grad.item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"whole": 1}, ValueError),
        ({"warm_start": None}, ValueError),
        ({"horizon": 0}, ValueError),
        ({"cost": None}, TypeError),
        ({"solver": None}, TypeError),
        ({"on_failure": "nan"}, ValueError),
    ],
)
def test_bad_input(change, error):
    name = next(iter(change))
    with pytest.raises(error, match=name):
        ti.nn.MPC(**{"dynamics": cart, "cost": Cost(0.3), "horizon": 8} | change)

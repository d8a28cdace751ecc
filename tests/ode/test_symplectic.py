"""Symplectic solvers: their order, the energy over long paths, the way back, gradients, and what they refuse."""

import math

import pytest
import torch

import torchimplicit as ti

METHODS = [ti.Leapfrog, ti.Suzuki4]


def pendulum(t, state):
    q, p = state
    return p, -torch.sin(q)


def energy(q, p):
    return p.square() / 2 - torch.cos(q)


def start():
    return torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([[0.3], [0.0]], dtype=torch.float64)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_is_as_stated_also_where_the_force_depends_on_time(method):
    def driven(t, state):
        q, p = state
        return p * (1 + 0.3 * torch.sin(t)), -torch.sin(q) + torch.cos(2 * t)

    def end(solver):
        return ti.odeint(driven, start(), times(0.0, 2.0), solver=solver).value[0][-1]

    best = end(ti.Dopri8(rtol=1e-12, atol=1e-12))
    errors = [float((end(method(dt=h)) - best).abs().max()) for h in (0.1, 0.05)]
    assert abs(math.log2(errors[0] / errors[1]) - method.order) < 0.2


@pytest.mark.parametrize(("method", "bound"), [(ti.Leapfrog, 3e-2), (ti.Suzuki4, 3e-4)])
def test_the_energy_of_a_pendulum_does_not_drift_in_ten_thousand_steps(method, bound):
    ts = torch.linspace(0, 2000, 201, dtype=torch.float64)
    with torch.no_grad():
        q, p = ti.odeint(pendulum, start(), ts, solver=method(dt=0.2, max_steps=20_000)).value
    off = (energy(q, p) - energy(q[0], p[0])).abs()
    assert float(off.max()) < bound
    assert float(off[-50:].max()) < 1.5 * float(off[:50].max())


@pytest.mark.parametrize("method", METHODS)
def test_steps_back_lead_to_the_start(method):
    there = [each[-1] for each in ti.odeint(pendulum, start(), times(0.0, 20.0), solver=method(dt=0.1)).value]
    back = ti.odeint(pendulum, tuple(there), times(20.0, 0.0), solver=method(dt=0.1)).value
    for each, first in zip(back, start(), strict=True):
        assert torch.allclose(each[-1], first, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_inside_steps_lie_on_a_cubic(method):
    ts = torch.linspace(0, 3, 41, dtype=torch.float64)
    best = ti.odeint(pendulum, start(), ts, solver=ti.Dopri8(rtol=1e-12, atol=1e-12)).value
    errors = []
    for dt in (0.2, 0.1):
        found = ti.odeint(pendulum, start(), ts, solver=method(dt=dt)).value
        errors.append(max(float((a - b).abs().max()) for a, b in zip(found, best, strict=True)))
    assert abs(math.log2(errors[0] / errors[1]) - method.order) < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_halves_of_a_tensor_are_a_pair(method):
    q, p = start()
    pair = ti.odeint(pendulum, (q, p), times(0.0, 1.0, 1.25), solver=method(dt=0.1)).value
    joined = ti.odeint(
        lambda t, y: torch.cat(pendulum(t, y.chunk(2, 1)), 1), torch.cat((q, p), 1), times(0.0, 1.0, 1.25),
        solver=method(dt=0.1),
    ).value  # fmt: skip
    assert torch.equal(torch.cat(pair, 2), joined)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_second_derivatives(method):
    def field(t, state, stiffness):
        q, p = state
        return torch.tanh(p) + torch.cos(t), -stiffness * torch.sin(q)

    def run(q, p, ts, stiffness):
        return ti.odeint(field, (q, p), ts, stiffness, solver=method(dt=0.31)).value

    inputs = [*start(), times(0.0, 0.5, 1.0), times(1.3)]
    inputs = [each.requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-8, rtol=1e-7)
    assert torch.autograd.gradgradcheck(lambda q, p, s: run(q, p, inputs[2].detach(), s), (*inputs[:2], inputs[3]))


@pytest.mark.parametrize(
    "state", [torch.ones(2, 3), torch.ones(2, 2, 4), (torch.ones(2, 3), torch.ones(2, 2)), (torch.ones(2, 2),) * 3]
)
def test_a_state_that_is_no_pair_is_refused(state):
    with pytest.raises(ValueError, match=r"Leapfrog: got a state of .* expected a pair \(q, p\)"):
        ti.odeint(lambda t, y: y, state, torch.tensor([0.0, 1.0]), solver=ti.Leapfrog(dt=0.1))


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (lambda t, s: (s[1], -s[0] - 0.1 * s[1]), "the force, dp/dt, depends on p"),
        (lambda t, s: (s[1] * s[0], -s[0]), "the velocity, dq/dt, depends on q"),
    ],
)
def test_a_field_that_is_not_separable_is_refused(field, words):
    with pytest.raises(ValueError, match=words):
        ti.odeint(field, start(), times(0.0, 1.0), solver=ti.Leapfrog(dt=0.1))

"""Partial differential equations by the method of lines, against what is known of their solutions."""

import math

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.nn import Burgers, ReactionDiffusion

TIGHT = {"rtol": 1e-8, "atol": 1e-10}


def grid(points, length=2 * math.pi):
    return torch.arange(points, dtype=torch.float64) * length / points, length / points


@pytest.mark.parametrize("dims", [1, 2])
def test_a_wave_decays_as_it_shall_and_better_on_a_finer_grid(dims):
    errors = []
    for points in (8, 16):
        x, h = grid(points)
        start = torch.sin(x)
        start = start if dims == 1 else start.unsqueeze(1) + torch.cos(x)
        field = ReactionDiffusion([0.3], None, h).double()
        with torch.no_grad():
            later = ti.odeint(field, start[None, None], torch.tensor([0.0, 1.0]).double(), solver=ti.Tsit5(**TIGHT))
        errors.append(float((later.value[-1, 0, 0] - math.exp(-0.3) * start).abs().max()))
    assert errors[1] < errors[0] / 3.5  # second order


@pytest.mark.parametrize("boundary", ["periodic", "insulated"])
def test_nothing_is_lost(boundary):
    torch.manual_seed(0)
    start = torch.rand(2, 1, 6, 5, dtype=torch.float64)
    field = ReactionDiffusion([0.2], None, 0.5, boundary).double()
    times = torch.tensor([0.0, 1.0, 9.0]).double()
    values = ti.odeint(field, start, times, solver=ti.Tsit5(**TIGHT)).value.detach()
    assert torch.allclose(values.sum((2, 3, 4)), start.sum((1, 2, 3)).expand(3, 2), rtol=1e-6)
    assert float(values[2].std((1, 2, 3)).max()) < 0.2 * float(start.std((1, 2, 3)).min())
    leaking = ReactionDiffusion([0.2], None, 0.5, "zero").double()
    assert float(ti.odeint(leaking, start, torch.tensor([0.0, 9.0]).double()).value[-1].detach().abs().max()) < 0.05


def test_burgers_against_the_travelling_front():
    nu, h = 0.1, 0.05
    x = torch.arange(-60, 61, dtype=torch.float64) * h
    field = Burgers(nu, h, "insulated").double()

    def front(t):  # from 1 on the left to 0 on the right, at speed 1/2
        return 0.5 * (1 - torch.tanh((x - t / 2) / (4 * nu)))

    later = ti.odeint(field, front(0.0)[None, None], torch.tensor([0.0, 1.0]).double()).value[-1, 0, 0].detach()
    assert float((later - front(1.0)).abs().max()) < 5e-3
    x, h = grid(24)
    start = torch.sin(x)[None, None] + 0.3
    periodic = ti.odeint(Burgers(0.2, h).double(), start, torch.tensor([0.0, 2.0]).double()).value[-1].detach()
    assert float(periodic.sum()) == pytest.approx(float(start.sum()))


def test_an_unknown_coefficient_is_found():
    x, h = grid(16)
    start = torch.stack((torch.sin(x), torch.cos(2 * x)))[:, None]
    ts = torch.linspace(0, 1, 4, dtype=torch.float64)
    seen = ti.odeint(Burgers(0.3, h).double(), start, ts).value.detach()
    field = Burgers(1.0, h).double()
    optimizer = torch.optim.LBFGS(field.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (ti.odeint(field, start, ts).value - seen).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert field.viscosity.item() == pytest.approx(0.3, rel=1e-3)


def test_a_source_takes_part():
    field = ReactionDiffusion([0.1, 0.1], nn.Conv1d(2, 2, 1), 0.1)
    u = torch.randn(3, 2, 7)
    without = ReactionDiffusion([0.1, 0.1], None, 0.1)
    assert torch.allclose(field(torch.zeros(()), u) - without(torch.zeros(()), u), field.source(u), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ReactionDiffusion([], None, 0.1), "for every quantity"),
        (lambda: ReactionDiffusion([-1.0], None, 0.1), "number > 0"),
        (lambda: Burgers(0.0, 0.1), "viscosity=0"),
        (lambda: Burgers(0.1, 0.0), "spacing=0"),
        (lambda: Burgers(0.1, 0.1, "open"), "boundary='open'"),
        (lambda: ReactionDiffusion([1.0], None, 0.1)(0, torch.zeros(2, 3, 4)), "got 3 quantities"),
        (lambda: Burgers(0.1, 0.1)(0, torch.zeros(2, 3)), r"expected \(B, C, X\)"),
    ],
)
def test_bad_input(make, text):
    with pytest.raises(ValueError, match=text):
        make()

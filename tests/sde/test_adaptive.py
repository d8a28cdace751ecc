"""Steps that every sample chooses for itself: the law of the noise, errors, samples for themselves, gradients."""

import pytest
import torch
from torch import func

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, TS, D, drift, rate_and_mix, start
from tests.sde.law import check_normal, distance
from torchimplicit import sde
from torchimplicit.core.status import Status
from torchimplicit.path import narrow
from torchimplicit.sde import driver as drivers

ROUGH = sde.Heun(rtol=0.1, atol=0.01, control=ti.PID(safety=1.0, largest=20.0))
OUTPUTS = torch.tensor([0.0, 0.3, 1.0], dtype=D)


def pair(batch):
    """A geometric Brownian motion, and the noise that drives it."""
    return torch.tensor([1.0, 0.0], dtype=D).repeat(batch, 1)


def falling(t, y, volatility):
    return torch.cat((-0.5 * y[:, :1], 0 * y[:, 1:]), 1)


def both(t, y, volatility):
    return torch.cat((volatility * y[:, :1], torch.ones_like(y[:, 1:])), 1).unsqueeze(2)


def solve(batch, volatility, solver=ROUGH, **options):
    options = {"noise": "scalar", "calculus": "stratonovich", "brownian": 1, **options}
    return ti.sdeint(falling, both, pair(batch), OUTPUTS, volatility, solver=solver, **options)


def test_the_law_of_the_noise_under_heavy_rejection(monkeypatch):
    batch, volatility = 20_000, torch.tensor(2.0, dtype=D)
    sol = solve(batch, volatility)
    assert sol.report.rejected.sum() > 0.25 * sol.report.steps.sum()
    w = sol.value[:, :, 1]
    check_normal(w[2])
    check_normal(w[1] / 0.3**0.5)
    check_normal((w[2] - w[1]) / 0.7**0.5)

    class Redrawn(sde.Stack):
        def propose(self, t, stop, running):
            self._height.zero_()  # forgets what it has drawn
            return super().propose(t, stop, running)

    monkeypatch.setattr(drivers, "Stack", Redrawn)
    w = solve(4_000, volatility).value[2, :, 1]
    assert w.mean() > 0.3
    assert w.var() < 0.4
    assert distance(w) * len(w) ** 0.5 > 10


def test_errors_follow_the_tolerance_whatever_the_volatility():
    volatility = torch.logspace(-1, 0.3, 200, dtype=D).unsqueeze(1)
    errors, evaluations = [], []
    for rtol in (1e-1, 1e-2):
        sol = solve(200, volatility, sde.Heun(rtol=rtol, atol=0.1 * rtol))
        y, w = sol.value[2].unbind(1)
        exact = torch.exp(-0.5 + volatility.squeeze(1) * w)
        errors.append(((y - exact).square().mean() / exact.square().mean()).sqrt())
        evaluations.append(sol.report.steps.double())
    assert errors[0] < 0.2
    assert errors[1] < 0.02
    assert errors[1] < 0.25 * errors[0]
    assert evaluations[1][:50].mean() < 0.2 * evaluations[1][-50:].mean()  # quiet samples take few steps


@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_gradients_are_those_of_the_steps_that_were_taken(noise):
    solver, found = sde.Heun(rtol=3e-2, atol=3e-3), []

    def run(y0, rate, mix, adjoint=ti.Checkpointed()):
        options = {"noise": noise, "calculus": "stratonovich", "solver": solver, "brownian": 3, "adjoint": adjoint}
        return ti.sdeint(drift, DIFFUSIONS[noise], y0, TS, rate, mix, **options).value

    for adjoint in (ti.Direct(), ti.Checkpointed(), ti.Checkpointed(2)):
        inputs = tuple(each.requires_grad_() for each in (start(4), *rate_and_mix()))
        value = run(*inputs, adjoint)
        found.append([value, *torch.autograd.grad(value.sin().sum(), inputs, materialize_grads=True)])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)
    rest = rate_and_mix()
    assert torch.equal(run(start(4)[:2], *rest), found[0][0][:, :2])  # whatever their mates
    mapped = func.vmap(lambda y0: run(y0, *rest))(torch.stack((start(4), 2 * start(4))))
    assert torch.allclose(mapped[0], found[0][0], rtol=1e-12)
    by_rate = func.grad(lambda rate: run(start(4), rate, rest[1]).sin().sum())(rest[0])
    assert torch.allclose(by_rate, found[0][2])


@pytest.mark.parametrize("source", [5, sde.Tree(seed=5)], ids=["numbers", "tree"])
def test_narrowed(monkeypatch, source):
    """Samples that go on alone feel nothing of it: what waits of their noise goes with them."""
    monkeypatch.setattr(narrow, "SMALL", 1)
    ends = torch.tensor([0.1, 1.0, 0.15, 0.6, 0.2, 0.12, 0.11, 1.0], dtype=D)
    ts = OUTPUTS.unsqueeze(1) * ends
    volatility = torch.tensor([0.5, 1.0, 1.0, 1.5, 0.7, 1.0, 0.5, 2.0], dtype=D).unsqueeze(1)
    at, found, phases = torch.stack((0.2 * ends, 0.9 * ends)), [], set()
    taken = sde.Stack.take
    monkeypatch.setattr(sde.Stack, "take", lambda self, some: phases.add(len(some)) or taken(self, some))
    for batched in (None, (0,)):
        for adjoint, dense in ((ti.Checkpointed(3), False), (ti.Direct(), True)):
            each = volatility.clone().requires_grad_()
            sol = ti.sdeint(
                falling, both, pair(8), ts, each, noise="scalar", calculus="stratonovich", solver=ROUGH,
                brownian=source, batched_args=batched, adjoint=adjoint, dense=dense,
            )  # fmt: skip
            value = torch.cat((sol.value, sol.path(at))) if dense else sol.value
            (once,) = torch.autograd.grad(value.sin().sum(), each, create_graph=not dense)
            twice = () if dense else torch.autograd.grad(once.square().sum(), each)
            found.append((value, once, *twice, sol.report.rejected))
        assert bool(phases) == (batched is not None)
    assert len(phases) > 1, "solves have narrowed, twice"
    for narrowed, whole in zip(found[2:], found[:2], strict=True):
        for one, other in zip(narrowed, whole, strict=True):
            assert torch.allclose(one, other, rtol=1e-11, atol=1e-13)
    assert found[0][-1].sum() > 0
    assert torch.equal(found[0][0], found[2][0])


def test_statuses():
    def spoilt(t, y, volatility):
        return torch.where(((volatility > 1) & (t > 0.2)).unsqueeze(2), torch.nan, both(t, y, volatility))

    volatility = torch.tensor([[0.5], [2.0], [1.0]], dtype=D)
    clean = solve(3, volatility.clamp_max(1))
    options = {"noise": "scalar", "calculus": "stratonovich", "brownian": 1, "on_failure": "ignore"}
    sol = ti.sdeint(falling, spoilt, pair(3), OUTPUTS, volatility, solver=ROUGH, **options)
    assert sol.status.tolist() == [0, int(Status.NON_FINITE), 0]
    assert torch.equal(sol.value[:, [0, 2]], clean.value[:, [0, 2]])
    assert sol.value.isfinite().all()

    def jumps(t, y, volatility):  # by more than is tolerated, however small the step
        return torch.where(t > 0.5, 1e3, 1.0).unsqueeze(2) * both(t, y, volatility)

    sol = ti.sdeint(falling, jumps, pair(3), OUTPUTS, 0.5 * volatility, solver=sde.Heun(dt_min=1e-4), **options)
    assert (sol.status == Status.STEP_TOO_SMALL).all()
    assert (sol.report.reached > 0.45).all()
    assert (sol.report.reached < 0.55).all()
    late = solve(3, volatility, sde.Heun(rtol=1e-3, max_steps=20), on_failure="ignore")
    assert (late.status == Status.MAX_STEPS).all()
    with pytest.raises(ti.ConvergenceError, match="Try more max_steps, or a looser rtol or atol"):
        solve(3, volatility, sde.Heun(rtol=1e-3, max_steps=20))


def test_options_change_the_steps():
    volatility = torch.tensor(1.0, dtype=D)
    base = solve(4, volatility).report
    assert solve(4, volatility, sde.Heun(rtol=0.1, atol=0.01, dt0=1e-4)).report.accepted.sum() != base.accepted.sum()
    assert solve(4, volatility, sde.Heun(atol=1e-5)).report.accepted.sum() > base.accepted.sum()
    assert solve(4, volatility, sde.Heun(dt=0.1)).report.accepted.tolist() == [10] * 4
    assert not solve(4, volatility, sde.Heun(dt=0.1)).report.adapts
    own = torch.tensor([[1e-1], [1e-1], [1e-3], [1e-1]], dtype=D)
    steps = solve(4, volatility, sde.Heun(rtol=own, atol=0.1 * own)).report.accepted
    assert steps[2] > 5 * steps[0]


def test_what_only_given_steps_can_do_is_refused():
    volatility = torch.tensor(1.0, dtype=D)
    with pytest.raises(ValueError, match=r"base=0.5 with Heun, which chooses its steps.*Heun\(dt=...\)"):
        solve(2, volatility, brownian=sde.Brownian(seed=1, base=0.5))
    ts = OUTPUTS.clone().requires_grad_()
    options = {"noise": "scalar", "calculus": "stratonovich", "brownian": 1, "solver": ROUGH}
    with pytest.raises(ValueError, match=r"ts: got times that want a gradient.*ts.detach\(\)"):
        ti.sdeint(falling, both, pair(2), ts, volatility, **options)
    with pytest.raises(ValueError, match="ts: got times that want a gradient"):
        func.jacfwd(lambda ts: ti.sdeint(falling, both, pair(2), ts, volatility, **options).value)(OUTPUTS)
    with pytest.raises(ValueError, match="no dt beside control"):
        sde.Heun(dt=0.1, control=ti.Fixed(0.1))
    with pytest.raises(ValueError, match="below the rounding of the state"):
        solve(2, volatility, sde.Heun(rtol=1e-30, atol=0.0))


def test_the_default_chooses_its_steps():
    options = {"brownian": 1, "solver": None}
    args = (lambda t, y: -y, lambda t, y: 0.1 * torch.ones_like(y), start(), TS)
    for more in ({"calculus": "stratonovich"}, {"noise": "additive"}):
        sol = ti.sdeint(*args, **options, **more)
        assert sol.report.adapts
        assert torch.equal(sol.value, ti.sdeint(*args, brownian=1, solver=sde.Heun(), **more).value)
    with pytest.raises(ValueError, match=r"solver: got None for an Ito equation.*EulerMaruyama\(dt=0.01\)"):
        ti.sdeint(*args, brownian=1)
    drift = sde.to_stratonovich(*args[:2])
    assert ti.sdeint(drift, *args[1:], brownian=1, calculus="stratonovich").report.adapts
